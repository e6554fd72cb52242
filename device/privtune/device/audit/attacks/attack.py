"""One interface for every attack: build it on public text and the mechanism's public side, then attack releases.

N secret tokens, K guesses each, V candidates, R released rows, D hidden width, B records, C classes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from privtune.device.audit.attacker_text import Bigrams, PublicText
from privtune.device.audit.attacks.channel import Channel, channel_of
from privtune.device.audit.attacks.density import TokenModel, fit_token_model
from privtune.device.audit.victim import Knowledge, Victim
from privtune.shared.at_rest import read_text, write_bytes
from privtune.shared.errors import ArtifactCorrupt, InvalidInput, StorageFull
from privtune.shared.files import make_folder
from privtune.shared.modeling.tensor_files import load_tensors, save_tensors

Say = Callable[[str, float], None]
GUESSES = 10


def silent(what: str, share: float) -> None:
    """A progress callback that does nothing."""


@dataclass
class Clean:
    """What was built on clean vectors. It depends on no mechanism, so all mechanisms on one bottom can share it.

    attacks: oblivious ones by name, variant, settings and seed.
    token_models: the oblivious one, once it has been fitted.

    Share it only if public text, bottom and encoder are the same.
    """

    attacks: dict[tuple[str, str, Any, int], Attack] = field(default_factory=dict)
    token_models: dict[Knowledge, TokenModel] = field(default_factory=dict)

    def known(self, attack: Attack, variant: str, seed: int) -> Attack:
        """The same attack as built before if it is oblivious, else this one."""
        if attack.knowledge != "oblivious":
            return attack
        return self.attacks.setdefault((attack.name, variant, attack.settings, seed), attack)


class Lab:
    """What the attacker works with: its text, the victim's public side, and models that several attacks share.

    encoder: the pre-trained blocks above the cut with their final norm, (h_BTD, mask_BT) -> (B, T, D); never trained in
    place. None if the attacker does not get them.
    clean: that of an earlier lab which differs only in the mechanism.
    """

    def __init__(
        self, public: PublicText, victim: Victim, encoder: nn.Module | None = None, clean: Clean | None = None
    ) -> None:
        self.public, self.victim, self.encoder = public, victim, encoder
        self.clean = Clean() if clean is None else clean
        self._simulated: dict[Knowledge, TokenModel] = {}

    def token_model(self, knowledge: Knowledge, say: Say = silent) -> TokenModel:
        """The Gaussian model of a release given a token, fitted once per kind of attacker."""
        known = self.clean.token_models if knowledge == "oblivious" else self._simulated
        if knowledge not in known:
            known[knowledge] = fit_token_model(self.public, self.victim, knowledge, say)
        return known[knowledge]

    @cached_property
    def channel(self) -> Channel | None:
        """The law of the mechanism's symbols; None if it releases vectors."""
        return channel_of(self)

    @cached_property
    def bigrams(self) -> Bigrams:
        """The n-gram model of the public text."""
        return Bigrams(self.public, self.victim.mechanism.context.bottom.embedding_VD.shape[0])


class Attack(ABC):
    """An attack and its settings (a frozen dataclass). `fit` once, then attack any number of releases.

    kind: "inversion" attacks return ids_NK, the best guess first; "attribute" attacks return scores_BC.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["inversion", "attribute"]]

    def __init__(self, knowledge: Knowledge, settings: Any = None) -> None:
        self.knowledge, self.settings = knowledge, settings
        self.fitted = False
        self._say: Say = silent

    def fit(self, lab: Lab, *, seed: int = 0, say: Say = silent) -> None:
        """Build the attack on the lab's public text. seed: of initial weights and order, never of the noise."""
        self._fit(lab, seed, say)
        self.fitted = True

    def attack(self, seen: Any, *, say: Say = silent) -> Tensor:
        """Guesses for releases (`Seen`). say: progress of slow attacks. Raises InvalidInput before `fit`."""
        if not self.fitted:
            raise InvalidInput(f"{self.name} has not been built yet")
        self._say = say
        return self._attack(seen)

    def save(self, folder: Path) -> None:
        """Write `attack.safetensors` and `attack.json`; no pickle. Raises StorageFull."""
        facts = {
            "name": self.name,
            "knowledge": self.knowledge,
            "settings": {} if self.settings is None else asdict(self.settings),
        }
        try:
            make_folder(folder, 0o700)
            save_tensors({key: value.detach().contiguous() for key, value in self._tensors().items()}, _tensors(folder))
            write_bytes(folder / "attack.json", json.dumps(facts, indent=1).encode() + b"\n")
        except OSError as error:
            raise StorageFull(f"{folder} can't be written: {error.strerror or error}") from error

    def load(self, folder: Path, lab: Lab) -> None:
        """Restore what `save` wrote, for the same lab. Raises ArtifactCorrupt if it is another attack's."""
        try:
            facts = json.loads(read_text(folder / "attack.json"))
            if (facts["name"], facts["knowledge"]) != (self.name, self.knowledge):
                raise ArtifactCorrupt(f"{folder} holds the attack {facts['name']} ({facts['knowledge']})")
            self._restore(load_tensors(_tensors(folder)), lab)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ArtifactCorrupt(f"{folder} does not hold this attack; build it again") from error
        self.fitted = True

    @abstractmethod
    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        """`fit`."""

    @abstractmethod
    def _attack(self, seen: Any) -> Tensor:
        """`attack`, once built."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """What `save` keeps."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        """The reverse of `_tensors`."""


def _tensors(folder: Path) -> Path:
    return folder / "attack.safetensors"
