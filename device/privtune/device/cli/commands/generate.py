"""`privtune generate`: generate text with a tuned language model, privately."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.connection import ReleasingConnection
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, JobId, limit_threads, option, to_stderr
from privtune.device.cli.signals import PAUSED
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.inference.generate import Generated
    from privtune.device.inference.generation.prompt_builder import Prompt
    from privtune.device.inference.generation.sampling import Sampling
    from privtune.device.inference.generation.writer import Writer

SAMPLING = "Sampling"
LEAK = (
    "The answer itself is not secret from the cloud, which has the model's head and can compute it: docs/inference.md."
)


@guarded
@grouped
def generate(
    job: JobId,
    connection: ReleasingConnection,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to answer or continue; may be repeated.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="A file with one prompt, or a .jsonl file with a prompt or messages per line. `-` reads one prompt "
            "from standard input."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Hold a conversation: one answer per line of input.")] = False,
    max_new_tokens: Annotated[
        int | None, option("Maximum length of an answer, in tokens. Default: 256.", SAMPLING, min=1)
    ] = None,
    temperature: Annotated[
        float, option("Sampling temperature. 0: always the most likely token. Default: 0.", SAMPLING, min=0, max=5)
    ] = 0.0,
    top_p: Annotated[
        float,
        option("Sample from the most likely tokens that make up this probability. Default: 1.", SAMPLING, min=0, max=1),
    ] = 1.0,
    top_k: Annotated[
        int, option("Sample from this many of the most likely tokens. 0: from all. Default: 0.", SAMPLING, min=0)
    ] = 0,
    seed: Annotated[int | None, option("Seed of the sampling. It never seeds the noise.", SAMPLING)] = None,
    stop: Annotated[list[str] | None, option("End the answer at this text; may be repeated.", SAMPLING)] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text with a model tuned here. Tokens take the same private path as in training, with the same noise.

    \b
    Examples:
      privtune generate ftjob-abc123 --prompt "Once upon a time"
      privtune generate ftjob-abc123 --chat --temperature 0.7
      privtune generate ftjob-abc123 --file questions.jsonl --json
    """
    prompts = _prompts(prompt or [], file, chat)
    from privtune.device.inference.generate import open_writer
    from privtune.device.inference.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop or ()),
    )
    settings = connection.settings()
    limit_threads(connection.threads)
    try:
        with open_writer(job, settings, to_stderr) as writer:
            to_stderr(writer.statement.text)
            to_stderr(LEAK)
            if chat:
                _converse(writer, sampling, as_json)
            for number, asked in enumerate(prompts):
                _answer(writer, asked, sampling, as_json, number)
    except KeyboardInterrupt:
        to_stderr("\nStopped; the cloud drops the text.")
        raise typer.Exit(PAUSED) from None


def _answer(writer: Writer, prompt: Prompt, sampling: Sampling, as_json: bool, number: int) -> Generated:
    """Write one answer to the terminal as it is generated, or as one line of JSON."""
    from privtune.device.inference.generate import stream_text

    answer = stream_text(writer, writer.prompts.asked(prompt), sampling, _nothing if as_json else _show)
    typer.echo(_json_line(number, answer) if as_json else "")
    return answer


def _converse(writer: Writer, sampling: Sampling, as_json: bool) -> None:
    """Hold a conversation until the end of the input (Ctrl-D); at the context's limit its oldest turns go."""
    from privtune.device.data.messages import ChatMessage
    from privtune.device.inference.generation.writer import DEFAULT_NEW_TOKENS
    from privtune.shared.errors import InvalidInput
    from privtune.shared.plain_text import decoded

    history: list[ChatMessage] = []
    turn = 0
    asking = sys.stdin.isatty()
    while True:
        if asking:
            typer.echo("> ", nl=False, err=True)
        raw = sys.stdin.buffer.readline()
        if not raw:
            return
        line = decoded(raw, "standard input")
        if not line.strip():
            continue
        history.append(ChatMessage("user", line.strip()))
        kept = writer.prompts.newest(history, sampling.max_new_tokens or DEFAULT_NEW_TOKENS)
        if len(kept) < len(history):
            to_stderr(
                "The conversation fills the model's context: "
                f"{counted(len(history) - len(kept), 'old message')} left out."
            )
            history = kept
        try:
            answer = _answer(writer, history, sampling, as_json, turn)
        except InvalidInput as error:
            if len(history) > 1:
                raise
            to_stderr(f"{error.message}. The conversation starts afresh.")
            history = []
            continue
        history.append(ChatMessage("assistant", answer.text))
        turn += 1


def _prompts(given: list[str], file: str | None, chat: bool) -> list[Prompt]:
    from privtune.shared.errors import InvalidInput
    from privtune.shared.plain_text import decoded, read_text

    if bool(given) + (file is not None) + chat != 1:
        raise InvalidInput("Give one of --prompt (once or more), --file FILE, or --chat.", param="prompt")
    if file is None:
        return list(given)
    if file == "-":
        return [decoded(sys.stdin.buffer.read(), "standard input").removesuffix("\n")]
    text = read_text(Path(file))
    return _lines(text, file) if file.endswith(".jsonl") else [text.removesuffix("\n")]


def _lines(text: str, name: str) -> list[Prompt]:
    from privtune.device.data.messages import parse_messages
    from privtune.shared.errors import DataInvalid
    from privtune.shared.plain_text import whole

    found: list[Prompt] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise DataInvalid(f"{name}, line {number}: not JSON.") from None
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            found.append(whole(row["prompt"], f"{name}, line {number}"))
        elif isinstance(row, dict) and "messages" in row:
            found.append(parse_messages(row["messages"], f"{name}, line {number}"))
        else:
            raise DataInvalid(f'{name}, line {number}: an object with "prompt" or "messages" is expected.')
    if not found:
        raise DataInvalid(f"{name} has no prompt.")
    return found


def _json_line(number: int, answer: Generated) -> str:
    return json.dumps({"index": number} | asdict(answer), ensure_ascii=False)


def _show(text: str) -> None:
    """Print a piece of text, without the control characters by which the cloud's states could steer the terminal."""
    typer.echo("".join(char for char in text if char.isprintable() or char in "\n\t"), nl=False)
    sys.stdout.flush()


def _nothing(_: str) -> None:
    """Show nothing until the answer is complete."""
