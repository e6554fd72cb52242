"""One cell of the evaluation, a mechanism on a data set with one seed, and the file that keeps finished cells."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.model.tail import skip_share
from research.paper.datasets import DataSet
from research.paper.scales import Amount, PaperSetting

VERSION = 1  # of a kept cell; cells of another version are measured again


@dataclass(frozen=True, kw_only=True)
class PaperCell:
    """What is measured. model: its short name."""

    data: DataSet
    model: str
    setting: PaperSetting
    scale: str
    amount: Amount
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of cells."""
        return f"{self.data.name}-{self.model}-{self.setting.name}-{self.scale}-{self.seed}"

    def question(self) -> dict[str, Any]:
        """Everything that decides the figures, apart from the code, as the file has it."""
        spec = self.setting.spec(self.data.task)
        facts = {
            "version": VERSION,
            "data": self.data.name,
            "model": self.model,
            "mechanism": self.setting.mechanism,
            "name": self.setting.name,
            "params": spec.params,
            "depth": self.setting.depth,
            "scale": self.scale,
            "seed": self.seed,
            "length": self.data.length,
            "sizes": self.amount.to_dict(self.data.task),
            **({"tail": self.setting.tail, "share": skip_share(self.data.task)} if self.setting.tail else {}),
        }
        written: dict[str, Any] = json.loads(json.dumps(facts))
        return written


def cells_file(stem: Path) -> MeasurementFile:
    """The finished cells beside the tables; stem: of the tables' names."""
    return MeasurementFile(stem.with_name(stem.name + ".cells.jsonl"))


def finished(cells: MeasurementFile, cell: PaperCell) -> dict[str, Any] | None:
    """What is kept of the cell; None if there is nothing, or the answer to another question."""
    found = cells.find(cell.key)
    return found if found is not None and found.get("question") == cell.question() else None


def keep(cells: MeasurementFile, cell: PaperCell, result: dict[str, Any]) -> None:
    """Keep the cell. Raises StorageFull."""
    cells.keep(cell.key, {"question": cell.question(), **_rounded(result)})


def _rounded(value: Any) -> Any:
    """Figures with four decimals: more would be noise, and make the file large."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
