"""`privtune generate`: let a tuned language model write, privately."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.interrupt import PAUSED
from privtune.device.cli.options import (
    ApiKey,
    AsJson,
    CaCert,
    Cloud,
    GrpcAddress,
    Home,
    JobId,
    LocalModel,
    Patience,
    Threads,
    control_plane,
    limit_threads,
    run_settings,
)

if TYPE_CHECKING:
    from privtune.device.inference.generate import Generated
    from privtune.device.inference.generation.prompt_builder import Prompt
    from privtune.device.inference.generation.sampling import Sampling
    from privtune.device.inference.generation.writer import Writer

WRITING = "Writing"
LEAK = "The answer itself is no secret from the cloud: it has the model's head and can work it out (docs/inference.md)."


@guarded
def generate(
    job: JobId,
    prompt: Annotated[list[str] | None, typer.Option(help="What to answer or go on with; may be repeated.")] = None,
    file: Annotated[
        str | None,
        typer.Option(help="A file with one prompt, or .jsonl with a prompt or messages a line; - reads the terminal."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Hold a conversation: one line, one answer.")] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=WRITING, help="Longest answer, in tokens. Default: 256.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=5, rich_help_panel=WRITING, help="0 takes the likeliest token each time.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, rich_help_panel=WRITING, help="Draw from this share of likelihood only.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, rich_help_panel=WRITING, help="Draw from so many tokens only; 0: from all.")
    ] = 0,
    seed: Annotated[
        int | None,
        typer.Option(rich_help_panel=WRITING, help="Of the sampling, never of the noise.", show_default=False),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(rich_help_panel=WRITING, help="End at this text; may be repeated.")
    ] = None,
    as_json: AsJson = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    local_model: LocalModel = None,
    patience: Patience = 600.0,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Write with a language model tuned here; every token takes the same private path, with the same noise.

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
    with control_plane(cloud, api_key, ca_cert) as control:
        settings = run_settings(
            control,
            api_key=api_key,
            ca_cert=ca_cert,
            home=home,
            grpc_address=grpc_address,
            local_model=local_model,
            patience=patience,
        )
    limit_threads(threads)
    try:
        with open_writer(job, settings, _say) as writer:
            _say(writer.statement.text)
            _say(LEAK)
            if chat:
                _converse(writer, sampling, as_json)
            for number, asked in enumerate(prompts):
                _answer(writer, asked, sampling, as_json, number)
    except KeyboardInterrupt:
        typer.echo("\nStopped; the cloud lets go of the text.", err=True)
        raise typer.Exit(PAUSED) from None


def _answer(writer: Writer, prompt: Prompt, sampling: Sampling, as_json: bool, number: int) -> Generated:
    """Write one answer to the terminal as it comes, or as one line of JSON."""
    from privtune.device.inference.generate import stream_text

    answer = stream_text(writer, writer.prompts.ids(prompt), sampling, _nothing if as_json else _show)
    typer.echo(_json_line(number, answer) if as_json else "")
    return answer


def _converse(writer: Writer, sampling: Sampling, as_json: bool) -> None:
    """Turns of a conversation until the end of the input (Ctrl-D)."""
    from privtune.device.data.messages import ChatMessage

    history: list[ChatMessage] = []
    asking = sys.stdin.isatty()
    while True:
        if asking:
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            continue
        history.append(ChatMessage("user", line.strip()))
        answer = _answer(writer, history, sampling, as_json, len(history) // 2)
        history.append(ChatMessage("assistant", answer.text))


def _prompts(given: list[str], file: str | None, chat: bool) -> list[Prompt]:
    from privtune.shared.errors import InvalidInput

    if bool(given) + (file is not None) + chat != 1:
        raise InvalidInput("Give one of --prompt (once or more), --file FILE, or --chat.", param="prompt")
    if file is None:
        return list(given)
    if file == "-":
        return [sys.stdin.read().removesuffix("\n")]
    text = _read(Path(file))
    return _lines(text, file) if file.endswith(".jsonl") else [text.removesuffix("\n")]


def _read(path: Path) -> str:
    from privtune.shared.errors import DataInvalid

    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataInvalid(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataInvalid(f"{path} is not UTF-8.") from None


def _lines(text: str, name: str) -> list[Prompt]:
    from privtune.device.data.messages import parse_messages
    from privtune.shared.errors import DataInvalid

    found: list[Prompt] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError:
            raise DataInvalid(f"{name}, line {number}: not JSON.") from None
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            found.append(row["prompt"])
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
    """Print a piece. What comes from the model's states may not steer the terminal."""
    typer.echo("".join(char for char in text if char.isprintable() or char in "\n\t"), nl=False)
    sys.stdout.flush()


def _nothing(_: str) -> None:
    """Show nothing until the answer is whole."""


def _say(line: str) -> None:
    typer.echo(line, err=True)
