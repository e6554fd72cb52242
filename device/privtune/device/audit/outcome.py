"""What a run of the suite found: one row per attack, findings about side channels, utility and examples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from privtune.device.audit.attacks.channels import Finding
from privtune.device.audit.identifying import FIGURE, NAME, Hidden
from privtune.device.audit.metrics import Figure
from privtune.device.audit.victim import Knowledge
from privtune.shared.wording import counted


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """The figures of one attack.

    name: EIA-1, AIA-2, ...
    variant: its metric or what it looks at.
    kind: inversion or attribute.
    records: how many it ran on.
    figures: by name; see `InversionScore` and `AttributeScore`.
    """

    name: str
    variant: str
    knowledge: Knowledge
    kind: str
    records: int
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class RecoveredText:
    """The token ids of one attacked record, and the guess of the attack that names most content words."""

    truth: list[int]
    guess: list[int]


@dataclass(kw_only=True)
class Outcome:
    """Everything that a run of the suite found."""

    rows: list[AttackRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    utility: dict[str, Figure] = field(default_factory=dict)
    examples: list[RecoveredText] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    def worst(self, knowledge: Knowledge, figure: str = "top1") -> AttackRow | None:
        """The inversion attack that serves this attacker best. One who knows the mechanism may also ignore it."""
        known = ("oblivious", "adaptive") if knowledge == "adaptive" else ("oblivious",)
        rows = [row for row in self.rows if row.kind == "inversion" and row.knowledge in known]
        return max(rows, key=lambda row: row.figures[figure].value, default=None)

    def worst_replaced(self) -> AttackRow | None:
        """The inversion attack that names most of the replaced words, beyond chance; None where none was replaced."""
        rows = [row for row in self.rows if FIGURE in row.figures]
        return max(rows, key=lambda row: row.figures[FIGURE].value - row.figures[FIGURE].floor, default=None)

    def add_replaced(self, hidden: Hidden | None) -> None:
        """The finding about the replaced words, once all attacks have run; nothing where none was replaced."""
        row = self.worst_replaced()
        if row is None or hidden is None:
            return
        text = (
            f"Replaced before the model read these records, or replaced elsewhere and in clear in them: "
            f"{counted(sum(map(len, hidden.words)), 'word')}. Found are those in what the strongest attack "
            f"({row.name} {row.variant}) names of the record; the floor is the share that is in what it names of "
            "another record, by chance. All other words leave readable, unless noise hides them."
        )
        self.findings.append(Finding(name=NAME, figure=row.figures[FIGURE], text=text))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the examples, which are the owner's text."""
        return {
            "attacks": [asdict(row) for row in self.rows],
            "side_channels": [asdict(finding) for finding in self.findings],
            "utility": {name: asdict(figure) for name, figure in self.utility.items()},
            "untested": self.untested,
        }
