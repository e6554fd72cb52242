"""`privtune tune-noise`: try settings of a mechanism on a dev split and choose one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import (
    DATA,
    AsJson,
    Home,
    Text2Column,
    TextColumn,
    Threads,
    check_skip,
    home_folder,
    limit_threads,
)

if TYPE_CHECKING:
    from privtune.device.audit.tuning.choice import Value
    from privtune.device.audit.tuning.request import TuneRequest
    from privtune.device.data.source import DataSource

WISH = "What you want"
SEARCH = "What is tried"
HOLDOUT = 0.2


def _option(help_text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **more)


@guarded
def tune_noise(
    model: Annotated[
        str | None, typer.Option(help="Your copy of the model: folder, hub id or GGUF.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Your training data, with labels. It never leaves.", show_default=False)
    ] = None,
    dev: Annotated[
        str | None, _option("File of dev records to choose on. Never the test split: keep it for the end.", DATA)
    ] = None,
    holdout: Annotated[
        float | None, _option(f"Share of --data held out as the dev split instead. Default: {HOLDOUT}.", DATA)
    ] = None,
    max_recovery: Annotated[
        float | None,
        _option("Most that the worst attack may recover, as a share: 0.1 is one word in ten.", WISH, min=0, max=1),
    ] = None,
    of: Annotated[
        Literal["content", "all"],
        _option("Of which words. content: without the 100 commonest. Default: content.", WISH, "--of"),
    ] = "content",
    max_drop: Annotated[
        float | None, _option("Most points of accuracy that may be lost, like 3.", WISH, min=0, max=100)
    ] = None,
    mechanism: Annotated[str, _option("See `privtune mechanisms`. Default: dchi.", SEARCH)] = "dchi",
    vary: Annotated[
        str | None,
        _option(
            "PARAM=V1,V2,... to try. Default: what `privtune mechanisms` names as `tuned by`.",
            SEARCH,
            metavar="PARAM=..",
        ),
    ] = None,
    param: Annotated[
        list[str] | None, _option("NAME=VALUE of the mechanism that stays as it is; may be repeated.", SEARCH)
    ] = None,
    refine: Annotated[
        int, _option("Then so many more settings, each between the two where the answer lies.", SEARCH, min=0, max=20)
    ] = 0,
    cut: Annotated[int, typer.Option(min=0, help="Blocks of the model that run here.")] = 1,
    tail: Annotated[
        int,
        typer.Option(
            min=0,
            help="Last blocks that will train here (`finetune --tail`). What is lost is still counted from the whole "
            "model trained on clean vectors.",
        ),
    ] = 0,
    skip: Annotated[
        Literal["none", "frozen", "tuned"] | None,
        typer.Option(help="With --tail, as in `finetune --skip`. Default: frozen.", show_default=False),
    ] = None,
    task: Annotated[
        Literal["classification", "causal-lm"], typer.Option(help="What will be trained; classification only.")
    ] = "classification",
    epochs: Annotated[int, typer.Option(min=1, max=100, help="Passes over the training data for each setting.")] = 3,
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds, every attack at length: hours for each setting.")
    ] = False,
    text_column: TextColumn = None,
    text2_column: Text2Column = None,
    label_column: Annotated[str | None, _option("Column of the label. Default: by the header.", DATA)] = None,
    limit: Annotated[int | None, _option("At most so many records of --data, drawn at random.", DATA, min=1)] = None,
    public_text: Annotated[
        Path | None,
        _option(
            "Text that anyone may know, one a line; the attacker has it, next to your other records. Default: what "
            "`privtune tables public` declared.",
            DATA,
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens a record; longer ones are cut.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the held-out part, attacks and training; never of the noise.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the page, the picture and what was measured; it goes on from there.")
    ] = Path("tune-noise"),
    as_json: AsJson = False,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Choose how much noise: measure what it hides and what it costs, on a dev split.

    For each setting, dev records are attacked as `privtune audit` does it, and a classifier is trained on releases of
    the training records and scored on the dev records. Chosen is what surely keeps your wish (the whole 95% interval,
    worst attacker): with --max-recovery alone the setting that costs least accuracy, else the one that hides most.
    Nothing is sent. Ctrl-C keeps what is measured; the same command goes on.

    \b
    Examples:
      privtune tune-noise --model ./minilm --data train.tsv --dev dev.tsv --max-recovery 0.1
      privtune tune-noise --model ./minilm --data train.tsv --mechanism shared --max-drop 3 --refine 2
      privtune tune-noise --model ./minilm --data train.tsv --mechanism gaussian \\
          --vary epsilon=8,32,128 --param clip_ratio=1 --max-recovery 0.2 --of all --max-drop 5
      privtune tune-noise --model ./minilm --data train.tsv --cut 3 --tail 1 --skip tuned --mechanism codes \\
          --param dims=4 --vary codes=4,8,32 --max-recovery 0.1 --of all --max-drop 3
    """
    options = dict(locals())
    request = _request(options)
    from privtune.device.audit.report.document import write_private
    from privtune.device.audit.tuning.tune import tune
    from privtune.device.audit.tuning.tune_report import facts_of, page, picture
    from privtune.device.cli.tune_screen import TuneScreen, tell
    from privtune.shared.errors import JobPaused

    limit_threads(threads)
    screen = TuneScreen(of, quiet=as_json)
    try:
        with screen:
            tuned = tune(request, home_folder(home), out, screen)
    except KeyboardInterrupt:
        raise JobPaused(f"Stopped. What was measured is kept in {out}; the same command goes on from there.") from None
    command = finetune_line(options, request, tuned.choice.setting.value) if tuned.choice.met else None
    document = _json(facts_of(request, tuned, command))
    for name, text in (
        ("tune.json", document),
        ("tune.svg", picture(request, tuned)),
        ("tune.html", page(request, tuned, command)),
    ):
        write_private(out / name, text)
    if as_json:
        typer.echo(document, nl=False)
    else:
        tell(request, tuned, command, out)


def _request(options: dict[str, Any]) -> TuneRequest:
    """The options, checked as far as can be done without a model."""
    from privtune.shared.errors import InvalidInput

    for needed in ("model", "data"):
        if not options[needed]:
            raise InvalidInput(f"--{needed} is missing. `privtune tune-noise --help` has examples.", param=needed)
    if options["max_recovery"] is None and options["max_drop"] is None:
        raise InvalidInput(
            "Say what you want: --max-recovery 0.1 (of the words), --max-drop 3 (points of accuracy), or both."
        )
    if options["task"] != "classification":
        raise InvalidInput(
            "tune-noise is for classification. A language model's gradients name its next tokens whatever the noise "
            "hides, so no setting of it could keep a wish; `privtune audit --task causal-lm` shows by how much.",
            param="task",
        )
    from privtune.device.audit.sizes import FULL, QUICK
    from privtune.device.audit.tuning.choice import Wish
    from privtune.device.audit.tuning.request import TuneRequest
    from privtune.device.audit.utility import UtilityTraining

    check_skip(options["skip"], options["tail"], options["cut"])
    fixed, param, values = _settings(options["mechanism"], options["vary"], options["param"] or ())
    train, dev = _sources(options)
    request = TuneRequest(
        model=options["model"],
        train=train,
        dev=dev,
        cut=options["cut"],
        tail=options["tail"],
        skip=options["skip"] or "frozen",
        mechanism=options["mechanism"],
        fixed=fixed,
        param=param,
        values=values,
        wish=Wish(
            words=options["of"],
            max_recovery=options["max_recovery"],
            max_drop=None if options["max_drop"] is None else options["max_drop"] / 100,
        ),
        refine=options["refine"],
        size=FULL if options["full"] else QUICK,
        training=UtilityTraining(epochs=options["epochs"]),
        max_length=options["max_length"],
        public_text=options["public_text"],
        seed=options["seed"],
    )
    for value in values:
        request.spec(value)
    return request


def _settings(
    mechanism: str, vary: str | None, params: list[str] | tuple[str, ...]
) -> tuple[dict[str, Value], str, tuple[Value, ...]]:
    """The fixed parameters, the varied one and what to try of it."""
    from privtune.device.cli.spec_options import mechanism_of
    from privtune.device.noise.registry import entry
    from privtune.shared.errors import InvalidInput

    strength = entry(mechanism).strength
    if strength is None:
        raise InvalidInput(f"mechanism {mechanism} has nothing to tune; take another one.", param="mechanism")
    name, sign, listed = (vary or "").partition("=")
    if vary and (not sign or not name.strip() or not all(part.strip() for part in listed.split(","))):
        raise InvalidInput(
            f"--vary {vary!r}: PARAM=V1,V2,... is expected, like --vary noise_ratio=1,3,10.", param="vary"
        )
    param = name.strip() if vary else strength.param
    tried = [f"{param}={value}" for value in (listed.split(",") if vary else map(str, strength.values))]
    fixed = mechanism_of(mechanism, params, no_noise=False)["params"]
    if param in fixed:
        raise InvalidInput(
            f"--param {param} and what is varied contradict each other; give one of them.", param="param"
        )
    values = (mechanism_of(mechanism, [one], no_noise=False)["params"][param] for one in tried)
    return fixed, param, tuple(dict.fromkeys(values))


def _sources(options: dict[str, Any]) -> tuple[DataSource, DataSource]:
    """Training and dev records."""
    from dataclasses import replace

    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.shared.errors import InvalidInput

    columns = Columns(text=options["text_column"], text2=options["text2_column"], label=options["label_column"])
    train = DataSource(path=options["data"], columns=columns, limit=options["limit"], seed=options["seed"])
    if options["dev"] is None:
        share = HOLDOUT if options["holdout"] is None else options["holdout"]
        return train.with_holdout(share)
    if options["holdout"] is not None:
        raise InvalidInput("Give --dev or --holdout, not both.", param="holdout")
    return train, replace(train, path=options["dev"], limit=None)


def finetune_line(options: dict[str, Any], request: TuneRequest, value: Value) -> str:
    """The command that trains with this setting, on the same records; NAME stands for the cloud's name of the model."""
    from privtune.device.audit.tuning.choice import shown

    words = ["privtune", "finetune", "--model", "NAME", "--local-model", request.model, "--data", request.train.path]
    words += ["--validation", request.dev.path] if options["dev"] else ["--holdout", shown(request.train.holdout)]
    for option in ("text_column", "text2_column", "label_column", "limit"):
        if options[option] is not None:
            words += [f"--{option.replace('_', '-')}", str(options[option])]
    for option, default in (("max_length", 128), ("seed", 0), ("epochs", 3)):
        if options[option] != default:
            words += [f"--{option.replace('_', '-')}", str(options[option])]
    words += ["--cut", str(request.cut), "--mechanism", request.mechanism]
    words += ["--tail", str(request.tail), "--skip", request.skip] if request.tail else []
    for name, setting in {**request.fixed, request.param: value}.items():
        words += ["--param", f"{name}={shown(setting)}"]
    return shlex.join(words)


def _json(facts: dict[str, Any]) -> str:
    import json

    return json.dumps(facts, indent=1) + "\n"
