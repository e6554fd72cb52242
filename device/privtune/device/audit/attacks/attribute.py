"""AIA-1 to 3, attribute inference: what do releases reveal about a private attribute of the record or its author?

AIA-1: an MLP on the mean of the released rows, or of the final states that the cloud computes from them. AIA-2: a
classifier over the sequence of rows. AIA-3: the text that an inversion attack recovers, then a text classifier trained
on text recovered in the same way.

B records, C classes, R rows, D hidden width, V candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privtune.device.audit.attacker_text import batches_of_length
from privtune.device.audit.attacks.attack import Attack, Lab, Say
from privtune.device.audit.attacks.encoders import encode, trainable
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.seeding import seeded

_DRAWS = 3
# Learning rate of AIA-3's word weights, each of which matters little in a long text. By cross-validation on the
# attacker's own text.
_WORD_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class AttributeSettings:
    """How the attacks train.

    epochs: over the public text.
    batch: records per step.
    learning_rate, encoder_rate: of new layers, and of pre-trained ones.
    view: what AIA-1 sees: the releases, or the pre-trained model's final states on them.
    """

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 1e-3
    encoder_rate: float = 5e-5
    hidden: int = 256
    view: Literal["releases", "states"] = "releases"


class AttributeAttack(Attack):
    """What the three share: a network from a view of the releases to class scores."""

    kind: ClassVar[Literal["inversion", "attribute"]] = "attribute"
    settings: AttributeSettings

    def __init__(self, knowledge: Knowledge, settings: AttributeSettings | None = None) -> None:
        super().__init__(knowledge, settings or AttributeSettings())

    def _labels(self, lab: Lab) -> Tensor:
        if lab.public.labels is None:
            raise InvalidInput("attribute inference needs public records with the attribute")
        return torch.from_numpy(lab.public.labels)

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._network = self._net(lab, int(tensors["classes"]))
        self._network.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
        self._network.eval()

    def _tensors(self) -> dict[str, Tensor]:
        state = {f"net.{name}": value.clone() for name, value in self._network.state_dict().items()}
        return {**state, "classes": torch.tensor(self._classes)}

    def _start(self, lab: Lab, seed: int) -> Tensor:
        labels_B = self._labels(lab)
        self._classes = int(labels_B.max()) + 1
        with seeded("audit", self.name, seed):
            self._network = self._net(lab, self._classes)
        return labels_B

    def _net(self, lab: Lab, classes: int) -> nn.Module:
        raise NotImplementedError


class PooledAttribute(AttributeAttack):
    """AIA-1: mean of the rows -> MLP."""

    name: ClassVar[str] = "AIA-1"

    def _net(self, lab: Lab, classes: int) -> nn.Module:
        self._encoder = lab.encoder if self.settings.view == "states" else None
        if self.settings.view == "states" and lab.encoder is None:
            raise InvalidInput("final states need the model above the cut")
        return pooled_classifier(lab.victim.mechanism.dim, self.settings.hidden, classes)

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        labels_B = self._start(lab, seed)
        draws = _DRAWS if self.knowledge == "adaptive" else 1
        pooled = []
        for draw in range(draws):
            pooled.append(self._pooled(lab.victim.simulate(lab.public.records, self.knowledge).seen))
            say(f"{self.name} ({self.knowledge})", (draw + 1) / draws)
        x_BD, labels_B = torch.cat(pooled), labels_B.repeat(draws)
        train(self._network, lambda chosen: self._network(x_BD[chosen]), labels_B, self.settings, seed)

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        scores_BC: Tensor = self._network(self._pooled(seen)).softmax(1)
        return scores_BC

    def _pooled(self, seen: Seen) -> Tensor:
        return mean_by_record(seen.y_RD, seen) if self._encoder is None else mean_states(self._encoder, seen)


class SequenceAttribute(AttributeAttack):
    """AIA-2: the rows of a record in order -> encoder -> mean -> classes. Fresh noise in every step."""

    name: ClassVar[str] = "AIA-2"

    def _net(self, lab: Lab, classes: int) -> nn.Module:
        return _SequenceClassifier(lab.victim.mechanism.dim, classes, lab.encoder)

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        labels_B = self._start(lab, seed)
        network = self._network
        fast = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
        slow = [p for name, p in network.named_parameters() if name.startswith("encoder.")]
        slow_rate = self.settings.encoder_rate if lab.encoder is not None else self.settings.learning_rate
        groups = [{"params": fast, "lr": self.settings.learning_rate}, {"params": slow, "lr": slow_rate}]
        train(
            network,
            lambda chosen: network(lab.victim.simulate([lab.public.records[i] for i in chosen], self.knowledge).seen),
            labels_B,
            self.settings,
            seed,
            groups,
            lambda share: say(f"{self.name} ({self.knowledge})", share),
            lab.public.lengths_B,
        )

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        return _in_order(seen, lambda part: self._network(part).softmax(1))


class TextAttribute(AttributeAttack):
    """AIA-3: recovered text -> linear classifier on its words. It trains on text that `inversion` recovers too."""

    name: ClassVar[str] = "AIA-3"

    def __init__(self, knowledge: Knowledge, inversion: Attack, settings: AttributeSettings | None = None) -> None:
        super().__init__(knowledge, settings)
        self._inversion = inversion

    def _net(self, lab: Lab, classes: int) -> nn.Module:
        self._padding = size = int(lab.victim.mechanism.context.bottom.embedding_VD.shape[0])
        words = nn.EmbeddingBag(size + 1, classes, mode="mean", padding_idx=size)
        nn.init.zeros_(words.weight)
        return words

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        labels_B = self._start(lab, seed)
        observed = lab.victim.simulate(lab.public.records, self.knowledge)
        ids_BT = self._text(observed.seen)
        # The attacker also has the true text, and more text helps.
        ids_BT = torch.cat([ids_BT, self._padded(observed.ids_N, observed.seen)])
        settings = replace(self.settings, learning_rate=_WORD_RATE)
        train(self._network, lambda chosen: self._network(ids_BT[chosen]), labels_B.repeat(2), settings, seed)
        say(f"{self.name} ({self.knowledge})", 1.0)

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        scores_BC: Tensor = self._network(self._text(seen)).softmax(1)
        return scores_BC

    def _text(self, seen: Seen) -> Tensor:
        return self._padded(self._inversion.attack(seen)[:, 0], seen)

    def _padded(self, ids_N: Tensor, seen: Seen) -> Tensor:
        """Ids of each record in one row, filled up with the padding id."""
        record_N = seen.record_N
        place_N = torch.arange(len(record_N)) - torch.searchsorted(record_N, record_N)
        out_BT = torch.full((len(seen), int(place_N.max()) + 1), self._padding)
        out_BT[record_N, place_N] = ids_N
        return out_BT


class _SequenceClassifier(nn.Module):
    def __init__(self, width: int, classes: int, encoder: nn.Module | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        with torch.no_grad():
            self.inner.weight.copy_(torch.eye(width))
            self.inner.bias.zero_()
        self.encoder = trainable(encoder, width)
        self.out = nn.Linear(2 * width, classes)

    def forward(self, seen: Seen) -> Tensor:
        """Class scores, (B, C)."""
        rows_RD = self.inner(self.norm(seen.y_RD))
        states_RD = encode(self.encoder, seen, rows_RD)
        both_RD = torch.cat([states_RD, rows_RD], dim=1)
        scores_BC: Tensor = self.out(mean_by_record(both_RD, seen))
        return scores_BC


def _in_order(seen: Seen, of: Callable[[Seen], Tensor]) -> Tensor:
    """One row per record, computed in batches of similar length; (B, ...)."""
    ordered, order_B, _ = seen.by_length()
    return torch.cat([of(part) for part in ordered.batches(64)])[order_B.argsort()]


def pooled_classifier(width: int, hidden: int, classes: int) -> nn.Module:
    """One vector per record -> class scores."""
    return nn.Sequential(
        nn.BatchNorm1d(width, affine=False), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.3),
        nn.Linear(hidden, classes),
    )  # fmt: skip


@torch.no_grad()
def mean_states(encoder: nn.Module, seen: Seen) -> Tensor:
    """Mean of the final states of each record, (B, D)."""
    return _in_order(seen, lambda part: mean_by_record(encode(encoder, part, part.y_RD), part))


def mean_by_record(rows_RD: Tensor, seen: Seen) -> Tensor:
    """Mean of the rows of each record, (B, D)."""
    sums_BD = torch.zeros(len(seen), rows_RD.shape[1]).index_add(0, seen.record_R, rows_RD)
    return sums_BD / seen.lengths_B.unsqueeze(1)


def train(
    network: nn.Module,
    scores: Callable[[Tensor], Tensor],
    labels_B: Tensor,
    settings: AttributeSettings,
    seed: int,
    groups: list[dict[str, object]] | None = None,
    progress: Callable[[float], None] = lambda share: None,
    lengths_B: NDArray[np.int64] | None = None,
) -> None:
    """AdamW on cross-entropy with linear decay.

    scores: class scores of the records at the indices.
    groups: parameter groups, if not all learn at one rate.
    progress: called with the share that is done.
    lengths_B: of the records, if batches of similar length save padding.
    """
    optimizer = torch.optim.AdamW(
        groups or [{"params": list(network.parameters())}], lr=settings.learning_rate, weight_decay=0.01, fused=True
    )
    steps = settings.epochs * -(-len(labels_B) // settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = np.random.default_rng(seed)
    network.train()
    done = 0
    with seeded("audit-attribute", seed):
        for _ in range(settings.epochs):
            alike_B = np.zeros(len(labels_B), dtype=np.int64) if lengths_B is None else lengths_B
            for chosen in batches_of_length(alike_B, settings.batch, rng):
                if len(chosen) < 2:
                    continue  # batch statistics need two
                loss = nn.functional.cross_entropy(scores(chosen), labels_B[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += 1
                progress(done / steps)
    network.eval()
