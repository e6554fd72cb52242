"""Every mechanism by name: its settings, its source, what may be claimed. Torch is imported by `build` alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from privtune.device.noise import params as p
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import JobSpec, MechanismSpec
from privtune.shared.validation import first_problem

if TYPE_CHECKING:
    from privtune.device.noise.base import Mechanism
    from privtune.device.noise.context import NoiseContext


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The parameter that trades protection for usefulness, and values to try.

    values: weakest protection first, roughly evenly spaced on a logarithmic scale.
    """

    param: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One mechanism.

    name: as jobs name it.
    target: its class, "module:Class".
    params: its settings.
    paper: its source.
    summary: what it does, in one sentence.
    statement: what may be claimed for it.
    strength: what tunes it; None: nothing does.
    """

    name: str
    target: str
    params: type[p.Params]
    paper: str
    summary: str
    statement: str
    strength: Strength | None = None

    def load(self) -> type[Mechanism]:
        """The class; imports torch."""
        module, _, name = self.target.partition(":")
        kind: type[Mechanism] = getattr(import_module(module), name)
        return kind

    def describe(self) -> dict[str, Any]:
        """JSON-ready, with each parameter's default, range and meaning."""
        return {
            "name": self.name,
            "paper": self.paper,
            "summary": self.summary,
            "statement": self.statement,
            "strength": None if self.strength is None else asdict(self.strength),
            "params": {key: _parameter(value) for key, value in self.params.model_json_schema()["properties"].items()}
            if self.params.model_fields
            else {},
        }


def _parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """One flat row from a JSON schema property; an optional property is a union with null."""
    merged = dict(schema)
    for part in schema.get("anyOf", ()):
        merged |= {key: value for key, value in part.items() if part.get("type") != "null"}
    names = {
        "type": "type",
        "default": "default",
        "enum": "choices",
        "minimum": "min",
        "exclusiveMinimum": "above",
        "maximum": "max",
        "exclusiveMaximum": "below",
        "pattern": "pattern",
        "description": "description",
    }
    return {names[key]: merged[key] for key in names if key in merged}


# Expected length of the noise relative to the signal: from almost none to drowned out.
_RATIOS = Strength(param="noise_ratio", values=(1, 3, 10, 30))
_ENTRIES = (
    Entry(
        name="none",
        target="privtune.device.noise.mechanisms.none:NoMechanism",
        params=p.NoneParams,
        paper="-",
        summary="Sends clean vectors: the text is protected by surrogates, or not at all.",
        statement="none: nothing is claimed",
    ),
    Entry(
        name="dchi",
        target="privtune.device.noise.mechanisms.dchi:DChi",
        params=p.DChiParams,
        paper="Feyisetan et al. 2020, arXiv 1910.08902",
        summary="Isotropic noise with a Gamma-distributed length, equally distributed for every token.",
        statement="embedding: metric privacy, eta * distance; cut: 2*eta*R per position when clipped, else none",
        strength=_RATIOS,
    ),
    Entry(
        name="gaussian",
        target="privtune.device.noise.mechanisms.gaussian:Gaussian",
        params=p.GaussianParams,
        paper="Balle & Wang 2018, arXiv 1805.06530; support: Hu et al. 2024, arXiv 2403.05598",
        summary="Gaussian noise on clipped vectors, whole, rectified or truncated, exact for (epsilon, delta).",
        statement="(epsilon, delta) per position, sqrt(n) * mu per record",
        strength=Strength(param="epsilon", values=(512, 64, 16, 4)),
    ),
    Entry(
        name="privtune",
        target="privtune.device.noise.mechanisms.privtune:PrivTune",
        params=p.PrivTuneParams,
        paper="PrivTune 2025, arXiv 2512.08809 (our reading)",
        summary="d_chi noise whose mean is moved, for each token, towards an n-hop neighbour by a public optimisation.",
        statement="as dchi; gain importance from public text: 2*eta*R per position; scale or private importance: none",
        strength=_RATIOS,
    ),
    Entry(
        name="shared",
        target="privtune.device.noise.mechanisms.shared:Shared",
        params=p.SharedParams,
        paper="this project",
        summary="All tokens of a public cluster get the same target: its centre, or a word drawn from the cluster.",
        statement="0 within a cluster; across: eta * distance with noise, epsilon with randomised response, else none",
        strength=Strength(param="cluster_size", values=(8, 32, 128, 512)),
    ),
    Entry(
        name="pool",
        target="privtune.device.noise.mechanisms.pool:Pool",
        params=p.PoolParams,
        paper="this project",
        summary="Sums k neighbouring vectors, which are cluster targets or clipped vectors. Shortens records.",
        statement="2*eta*sqrt(k)*R per released vector with noise; k * epsilon with randomised response; else none",
        strength=Strength(param="size", values=(2, 4, 8, 16)),
    ),
    Entry(
        name="codes",
        target="privtune.device.noise.mechanisms.codes:Codes",
        params=p.CodesParams,
        paper="this project",
        summary="Each vector in context becomes the nearest of K public ones, chosen where it matters for the task.",
        statement="epsilon per position with randomised response, else none",
        strength=Strength(param="codes", values=(256, 64, 16, 4)),
    ),
    Entry(
        name="snd",
        target="privtune.device.noise.mechanisms.snd:SplitNDenoise",
        params=p.SndParams,
        paper="Mai et al. 2023, arXiv 2310.09130",
        summary="Split-N-Denoise's noise: d_chi on clipped token embeddings. Use --tail in place of its denoiser.",
        statement="metric privacy, eta * distance, at most 2*eta*R per position",
        strength=_RATIOS,
    ),
    Entry(
        name="sap",
        target="privtune.device.noise.mechanisms.sap:SplitAndPrivatize",
        params=p.SapParams,
        paper="Shen et al. 2023, arXiv 2312.15603",
        summary="Split-and-Privatize: d_chi noise, weaker on contributing tokens (by our importance score).",
        statement="none: the scale depends on the secret token",
        strength=_RATIOS,
    ),
    Entry(
        name="textobfuscator",
        target="privtune.device.noise.mechanisms.textobfuscator:TextObfuscator",
        params=p.TextObfuscatorParams,
        paper="Zhou et al. 2023, Findings of ACL (2023.findings-acl.337)",
        summary="Vectors pulled towards their cluster's prototype, clipped, then Laplace noise. Encoder not trained.",
        statement="2*R*sqrt(D)/b per position when clipped, else none",
        strength=_RATIOS,
    ),
    Entry(
        name="custext",
        target="privtune.device.noise.mechanisms.custext:CusText",
        params=p.CusTextParams,
        paper="Chen et al. 2022, arXiv 2207.09490",
        summary="Replaces each token from its output set by the exponential mechanism, before the bottom reads it.",
        statement="epsilon within an output set, none across",
        strength=Strength(param="epsilon", values=(10, 4, 1.5, 0.5)),
    ),
)
REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def entry(name: str) -> Entry:
    """The mechanism of this name. Raises InvalidInput that lists the known names."""
    if name not in REGISTRY:
        raise InvalidInput(f"there is no mechanism '{name}'; there are: {', '.join(REGISTRY)}", param="mechanism")
    return REGISTRY[name]


def validate(spec: MechanismSpec) -> p.Params:
    """The settings of a job's mechanism, checked without torch or model. Raises InvalidInput that names the problem."""
    row = entry(spec.name)
    try:
        return row.params.model_validate(spec.params)
    except ValidationError as error:
        raise InvalidInput(_explain(row, error), param="mechanism") from error


def check_job(spec: JobSpec) -> None:
    """Whether its mechanism can serve a job. Raises InvalidInput; needs neither torch nor model."""
    settings, name = validate(spec.mechanism), spec.mechanism.name
    if settings.shortens and spec.task == "causal-lm":
        raise InvalidInput(f"mechanism {name} shortens records and can't serve causal-lm", param="mechanism")
    if settings.shortens and spec.tail and spec.skip != "none":
        raise InvalidInput(
            f"mechanism {name} shortens records, so clean vectors have no rows to be added to: use --skip none with "
            "this mechanism",
            param="skip",
        )
    if settings.labelled_by is not None and spec.task == "causal-lm":
        raise InvalidInput(f"mechanism {name}: {settings.labelled_by} needs records with labels", param="mechanism")


def _explain(row: Entry, error: ValidationError) -> str:
    problem = first_problem(error.errors())
    known = ", ".join(row.params.model_fields)
    if problem.kind == "extra_forbidden":
        has = f"it has: {known}" if known else "it has no parameters (`--protect words` or `--mechanism` adds noise)"
        return f"mechanism {row.name} has no parameter '{problem.field}'; {has}"
    return f"mechanism {row.name}: {problem.sentence} (parameters: {known})"


def build(spec: MechanismSpec, context: NoiseContext) -> Mechanism:
    """The mechanism of a job, ready to release. Raises InvalidInput for an unknown name, parameter or value."""
    settings = validate(spec)
    kind: Any = entry(spec.name).load()  # each class takes its own Params
    mechanism: Mechanism = kind(settings, context)
    return mechanism


def listing() -> list[dict[str, Any]]:
    """Every mechanism, JSON-ready, in order."""
    return [row.describe() for row in REGISTRY.values()]
