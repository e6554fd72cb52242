"""The cells of the frontier: settings of mechanisms, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from privtune.device.audit.engine import Depth
from privtune.shared.job_spec import MechanismSpec, SurrogateSpec


@dataclass(frozen=True, kw_only=True)
class FrontierCell:
    """A point of the picture.

    family: what it is drawn with.
    tail: last blocks, which the device trains with a skip while the cloud's stay frozen; 0: the cloud trains.
    tuned: a copy of the blocks below the cut is trained in the skip.
    alone: there is no cloud; the device's blocks read clean vectors.
    surrogates: what identifies is replaced in all records first, and words from this rank; None: nothing is.
    """

    family: str
    mechanism: str
    params: dict[str, Any]
    cut: int = 1
    tail: int = 0
    tuned: bool = False
    alone: bool = False
    surrogates: int | None = None

    @property
    def spec(self) -> MechanismSpec:
        """The mechanism as a job names it."""
        return MechanismSpec(name=self.mechanism, params=self.params)

    @property
    def depth(self) -> Depth:
        """Which blocks are on the device."""
        return Depth(cut=self.cut, tail=self.tail, skip="tuned" if self.tuned else "frozen")


def cells() -> dict[str, FrontierCell]:
    """Every cell by name, in running order."""

    def graded(grades: int, groups: str, **more: Any) -> dict[str, Any]:
        noised = {"epsilon_counts": 8.0, "count_words": 16} if groups != "public" else {}
        return {"groups": groups, "grades": grades, "injection": "embedding", **noised, **more}

    found = {"clean": FrontierCell(family="clean", mechanism="none", params={})}
    found |= {
        f"graded-{k}": FrontierCell(family="shared, graded", mechanism="shared", params=graded(k, "both"))
        for k in (4, 8, 2, 16)
    }
    task = {"task": "private", "epsilon_task": 8.0}
    for cut in (3, 5):
        for k, dims in ((32, 8), (128, 16), (512, 32)):
            params = {"codes": k, "dims": dims, **task}
            found[f"codes-{k}-cut-{cut}"] = FrontierCell(
                family=f"codes, cut {cut}", mechanism="codes", params=params, cut=cut
            )
    found["alone-cut-1-tuned"] = FrontierCell(
        family="device alone, tuned skip", mechanism="none", params={}, tail=1, tuned=True, alone=True
    )
    for cut, k, dims in ((2, 32, 4), (3, 128, 16), (3, 32, 8), (3, 8, 4), (4, 8, 4), (5, 8, 4), (6, 8, 4)):
        params = {"codes": k, "dims": dims, **task}
        with_tail = FrontierCell(family="codes, tail of 1", mechanism="codes", params=params, cut=cut, tail=1)
        alone = FrontierCell(family="device alone", mechanism="none", params={}, cut=cut, tail=1, alone=True)
        for name, cell in ((f"codes-{k}-cut-{cut}-tail-1", with_tail), (f"alone-cut-{cut}", alone)):
            found[name], found[f"{name}-tuned"] = cell, replace(cell, tuned=True, family=f"{cell.family}, tuned skip")
    # A device that trains one or two blocks: what is worth sending to a cloud?
    shallow = {f"codes-{k}": ("codes", {"codes": k, "dims": dims, **task}) for k, dims in ((32, 4), (128, 16))}
    for size in (48, 96):
        shallow[f"shared-{size}"] = ("shared", {"cluster_size": size})
        shallow[f"shared-{size}-early"] = ("shared", {"cluster_size": size, "injection": "embedding"})
    for name, (mechanism, params) in shallow.items():
        for cut in (1, 2):
            found[f"{name}-cut-{cut}-tail-1-tuned"] = FrontierCell(
                family=f"{mechanism}, tail of 1, tuned skip",
                mechanism=mechanism,
                params=params,
                cut=cut,
                tail=1,
                tuned=True,
            )
    shown = found["codes-8-cut-3-tail-1-tuned"]
    for word, params, family in (
        ("blind", {}, "codes that know no task, tail of 1, tuned skip"),
        ("hide", {**task, "task_use": "hide"}, "codes that hide the task, tail of 1, tuned skip"),
    ):
        found[f"codes-8-cut-3-{word}"] = replace(shown, params={"codes": 8, "dims": 4, **params}, family=family)
    hidden = found["codes-8-cut-3-hide"]
    for cut, epsilon in ((3, 1.0), (3, 2.0), (6, 1.0)):
        found[f"codes-8-cut-{cut}-hide-flip-{epsilon:g}"] = replace(
            hidden,
            params={**hidden.params, "epsilon_code": epsilon},
            family=f"{hidden.family}, randomised response",
            cut=cut,
        )
    for name, rank in (("names", SurrogateSpec().rank), ("names-rank-50000", 50_000)):
        found[f"{name}-cut-1"] = FrontierCell(family="surrogates", mechanism="none", params={}, surrogates=rank)
    found["clean-tail-1"] = FrontierCell(family="clean", mechanism="none", params={}, tail=1)
    found["clean-cut-3"] = FrontierCell(family="clean", mechanism="none", params={}, cut=3)
    for ratio in (1.0, 3.0, 6.0):
        found[f"dchi-{ratio:g}"] = FrontierCell(family="dchi", mechanism="dchi", params={"noise_ratio": ratio})
    for ratio in (0.05, 0.25, 1.0, 3.0):
        found[f"privtune-{ratio:g}"] = FrontierCell(
            family="privtune", mechanism="privtune", params={"noise_ratio": ratio}
        )
    # The paper's own bar, by its own mechanism: a longer shift, with a tail and in the paper's setting without one.
    for name, shift, weight in (("shift-1.5", 1.5, 0.3), ("shift-1.3", 1.3, 0.3), ("shift-1.5-consistent", 1.5, 3.0)):
        params = {"shift": shift, "tau": 0.2, "noise_ratio": 0.25, "w_consistency": weight}
        bare = FrontierCell(family="privtune, longer shift", mechanism="privtune", params=params, cut=2)
        found[f"privtune-{name}-cut-2"] = bare
        found[f"privtune-{name}-cut-2-tail-1-tuned"] = replace(
            bare, family="privtune, longer shift, tail of 1, tuned skip", tail=1, tuned=True
        )
    found["blind-96"] = FrontierCell(family="shared, task-blind", mechanism="shared", params={"injection": "embedding"})
    found["counts-8"] = FrontierCell(
        family="shared, private counts only", mechanism="shared", params=graded(8, "private")
    )
    found["lexicon-8"] = FrontierCell(family="shared, lexicon only", mechanism="shared", params=graded(8, "public"))
    found["pool-4-graded-8"] = FrontierCell(family="pool", mechanism="pool", params={**graded(8, "both"), "size": 4})
    found["pool-4"] = FrontierCell(family="pool", mechanism="pool", params={"size": 4, "clusters": False})
    found["custext-3"] = FrontierCell(family="custext", mechanism="custext", params={"epsilon": 3.0})
    found["gaussian-64"] = FrontierCell(family="gaussian", mechanism="gaussian", params={"epsilon": 64.0})
    found["textobfuscator-3"] = FrontierCell(
        family="textobfuscator", mechanism="textobfuscator", params={"noise_ratio": 3.0}
    )
    found["snd-3"] = FrontierCell(family="snd", mechanism="snd", params={"noise_ratio": 3.0})
    # Stands for the paper's denoiser: blocks on the device that read the clean vectors beside the cloud's output.
    found["snd-3-tail-1-tuned"] = replace(found["snd-3"], family="snd, tail of 1, tuned skip", tail=1, tuned=True)
    found["sap-3"] = FrontierCell(family="sap", mechanism="sap", params={"noise_ratio": 3.0})
    return found
