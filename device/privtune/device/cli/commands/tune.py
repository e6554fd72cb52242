"""`privtune tune-noise`: try settings of a mechanism on a dev split and choose one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from privtune.device.cli.data_options import LabelledColumns, OwnTerms
from privtune.device.cli.error_report import guarded
from privtune.device.cli.mechanism_options import params_of, protect_option
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import DATA, AsJson, Home, Threads, home_folder, limit_threads, option
from privtune.device.cli.planned_job import Gain, PlannedTraining
from privtune.device.client.job_options import default_of, flag_of

if TYPE_CHECKING:
    from privtune.device.audit.tuning.choice import Value
    from privtune.device.audit.tuning.request import TuneRequest
    from privtune.device.data.source import DataSource
    from privtune.shared.job_spec import MechanismSpec

GOAL = "Goal"
SEARCH = "Search"
HOLDOUT = 0.2
TUNED = "words"  # the least protection whose mechanism has a strength


@guarded
@grouped
def tune_noise(
    *,
    model: Annotated[
        str | None, typer.Option(help="Your copy of the model: folder, hub id or GGUF file.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Your training data, with labels. It never leaves this machine.", show_default=False),
    ] = None,
    dev: Annotated[
        str | None,
        option("File of dev records to choose on. Keep the test split for the end: do not choose on it.", DATA),
    ] = None,
    holdout: Annotated[
        float | None, option(f"Fraction of --data to hold out as the dev split instead. Default: {HOLDOUT}.", DATA)
    ] = None,
    max_recovery: Annotated[
        float | None,
        option(
            "Largest fraction of words that the strongest attack may recover: 0.1 is one word in ten.",
            GOAL,
            min=0,
            max=1,
        ),
    ] = None,
    of: Annotated[
        Literal["content", "all"],
        option("Which words count. content: all but the 100 most common. Default: content.", GOAL, "--of"),
    ] = "content",
    max_drop: Annotated[
        float | None, option("Largest loss of accuracy, in points, like 3.", GOAL, min=0, max=100)
    ] = None,
    vary: Annotated[
        str | None,
        option(
            "PARAM=V1,V2,...: the values to try. Default: those that `privtune mechanisms` lists as `tuned by`.",
            SEARCH,
            metavar="PARAM=..",
        ),
    ] = None,
    protect: Annotated[str | None, protect_option(TUNED)] = None,
    param: Annotated[
        list[str] | None, option("NAME=VALUE: a parameter of the mechanism to keep fixed; may be repeated.", SEARCH)
    ] = None,
    refine: Annotated[
        int,
        option(
            "Then try this many more values, each between the two that enclose the answer. Default: 0.",
            SEARCH,
            min=0,
            max=20,
        ),
    ] = 0,
    job: PlannedTraining,
    columns: LabelledColumns,
    own_terms: OwnTerms = None,
    gain: Gain = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Three seeds and every attack at full length: hours for each setting."),
    ] = False,
    limit: Annotated[
        int | None, option("Use at most this many records of --data, drawn at random.", DATA, min=1)
    ] = None,
    public_text: Annotated[
        Path | None,
        option(
            "Public text that the attacker has besides your other records, one text per line. Default: what `privtune "
            "tables public` declared.",
            DATA,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the held-out part, the attacks and the training. It never seeds the noise."),
    ] = 0,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the page, the picture and the measurements. What it holds is not measured again."
        ),
    ] = Path("tune-noise"),
    as_json: AsJson = False,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Choose how much noise to add: measure what each setting hides and what it costs, on a dev split.

    For each setting, dev records are attacked as in `privtune audit`, and a classifier is trained on noised training
    records and scored on the dev records. The command chooses a setting that meets your goal over the whole 95%
    interval, against the strongest attack: with --max-recovery alone the one that costs least accuracy, else the one
    that hides most. With a tail, the loss of accuracy is still counted from the whole model trained on clean vectors.
    With surrogates, noise is added to the replaced text, as the job would send it. What the cloud adds is quoted where
    it was measured (`privtune protections`); --gain measures it here.
    Nothing is sent, and language models can't be tuned. Ctrl-C keeps what is measured; the same command resumes.

    \b
    Examples:
      privtune tune-noise --model ./minilm --data train.tsv --dev dev.tsv --max-recovery 0.1
      privtune tune-noise --model ./minilm --data train.tsv --mechanism shared --max-drop 3 --refine 2
      privtune tune-noise --model ./minilm --data train.tsv --protect none --mechanism gaussian \\
          --vary epsilon=8,32,128 --param clip_ratio=1 --max-recovery 0.2 --of all --max-drop 5
      privtune tune-noise --model ./minilm --data train.tsv --protect words --cut 3 --vary codes=4,8,32 \\
          --max-recovery 0.1 --of all --max-drop 3
      privtune tune-noise --model ./minilm --data train.tsv --protect names --mechanism dchi --max-drop 3 --gain
    """
    options = dict(locals())
    request = _request(job, columns, options)
    from privtune.device.audit.report.document import write_private
    from privtune.device.audit.tuning.tune import tune
    from privtune.device.audit.tuning.tune_report import facts_of, page, picture
    from privtune.device.cli.tuning_screen import TuneScreen, show_choice
    from privtune.shared.errors import JobPaused

    limit_threads(threads)
    screen = TuneScreen(of, quiet=as_json)
    try:
        with screen:
            tuned = tune(request, home_folder(home), out, screen)
    except KeyboardInterrupt:
        raise JobPaused(f"Stopped. What was measured is kept in {out}; the same command resumes from there.") from None
    command = _finetune_line(job, columns, options, request, tuned.choice.setting.value) if tuned.choice.met else None
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
        show_choice(request, tuned, command, out)


def _request(job: PlannedTraining, columns: LabelledColumns, options: dict[str, Any]) -> TuneRequest:
    """The options, checked as far as possible without a model."""
    from privtune.shared.errors import InvalidInput

    for needed in ("model", "data"):
        if not options[needed]:
            raise InvalidInput(f"--{needed} is missing. `privtune tune-noise --help` has examples.", param=needed)
    if options["max_recovery"] is None and options["max_drop"] is None:
        raise InvalidInput("Set a goal: --max-recovery 0.1 (of the words), --max-drop 3 (points of accuracy), or both.")
    if job["task"] != "classification":
        raise InvalidInput(
            "tune-noise is for classification. A language model's gradients name its next tokens whatever the noise "
            "hides, so no setting could meet a goal; `privtune audit --task causal-lm` shows by how much.",
            param="task",
        )
    from privtune.device.audit.sizes import FULL, QUICK
    from privtune.device.audit.tuning.choice import Wish
    from privtune.device.audit.tuning.request import TuneRequest
    from privtune.device.audit.utility import UtilityTraining

    spec = job.spec(params_of(options["param"] or ()), options["protect"] or TUNED, options["model"])
    fixed, param, values = _settings(spec.mechanism, options["vary"], options["param"] or ())
    train, dev = _sources(columns, options)
    request = TuneRequest(
        model=options["model"],
        train=train,
        dev=dev,
        cut=spec.cut,
        tail=spec.tail,
        skip=spec.skip,
        surrogates=spec.surrogates,
        mechanism=spec.mechanism.name,
        fixed=fixed,
        param=param,
        values=values,
        wish=Wish(
            words=options["of"],
            max_recovery=options["max_recovery"],
            max_drop=None if options["max_drop"] is None else options["max_drop"] / 100,
        ),
        refine=options["refine"],
        measure_gain=options["gain"],
        size=FULL if options["full"] else QUICK,
        training=UtilityTraining(epochs=spec.train.epochs),
        max_length=spec.train.max_length,
        public_text=options["public_text"],
        seed=options["seed"],
    )
    for value in values:
        request.spec(value)
    return request


def _settings(
    mechanism: MechanismSpec, vary: str | None, params: Sequence[str]
) -> tuple[dict[str, Value], str, tuple[Value, ...]]:
    """The fixed parameters, the varied one, and the values to try."""
    from privtune.device.noise.registry import entry
    from privtune.shared.errors import InvalidInput

    strength = entry(mechanism.name).strength
    if strength is None:
        raise InvalidInput(
            f"mechanism {mechanism.name} has no strength to tune; name another one with --mechanism.", param="mechanism"
        )
    name, sign, listed = (vary or "").partition("=")
    if vary and (not sign or not name.strip() or not all(part.strip() for part in listed.split(","))):
        raise InvalidInput(
            f"--vary {vary!r}: PARAM=V1,V2,... is expected, like --vary noise_ratio=1,3,10.", param="vary"
        )
    param = name.strip() if vary else strength.param
    tried = [f"{param}={value}" for value in (listed.split(",") if vary else map(str, strength.values))]
    if param in params_of(params):
        raise InvalidInput(
            f"--param {param} and what is varied contradict each other; give one of them.", param="param"
        )
    values = (params_of([one])[param] for one in tried)
    fixed = {name: value for name, value in mechanism.params.items() if name != param}
    return fixed, param, tuple(dict.fromkeys(values))


def _sources(columns: LabelledColumns, options: dict[str, Any]) -> tuple[DataSource, DataSource]:
    """Training and dev records."""
    from dataclasses import replace

    from privtune.device.data.source import DataSource
    from privtune.shared.errors import InvalidInput

    train = DataSource(
        path=options["data"],
        columns=columns.columns(),
        limit=options["limit"],
        seed=options["seed"],
        own_terms=options["own_terms"],
    )
    if options["dev"] is None:
        share = HOLDOUT if options["holdout"] is None else options["holdout"]
        return train.with_holdout(share)
    if options["holdout"] is not None:
        raise InvalidInput("Give --dev or --holdout, not both.", param="holdout")
    return train, replace(train, path=options["dev"], limit=None)


def _finetune_line(
    job: PlannedTraining, columns: LabelledColumns, options: dict[str, Any], request: TuneRequest, value: Value
) -> str:
    """The command that trains with this setting, on the same records; NAME stands for the cloud's name of the model."""
    from dataclasses import asdict

    from privtune.device.audit.tuning.choice import shown

    words = ["privtune", "finetune", "--model", "NAME", "--local-model", request.model, "--data", request.train.path]
    words += ["--validation", request.dev.path] if options["dev"] else ["--holdout", shown(request.train.holdout)]
    for name, given in (asdict(columns) | {"limit": options["limit"], "own_terms": options["own_terms"]}).items():
        if given is not None:
            words += [flag_of(name), str(given)]
    for name, given in (("max_length", job["max_length"]), ("seed", options["seed"]), ("epochs", job["epochs"])):
        if given != default_of(name):
            words += [flag_of(name), str(given)]
    words += ["--surrogates", request.surrogates.replace]
    if request.surrogates.on:
        words += ["--surrogate-rank", str(request.surrogates.rank)]
        words += ["--surrogate-language", request.surrogates.language]
    words += ["--cut", str(request.cut), "--mechanism", request.mechanism]
    words += ["--tail", str(request.tail), "--skip", request.skip] if request.tail else []
    for name, setting in {**request.fixed, request.param: value}.items():
        words += ["--param", f"{name}={shown(setting)}"]
    return shlex.join(words)


def _json(facts: dict[str, Any]) -> str:
    import json

    return json.dumps(facts, indent=1) + "\n"
