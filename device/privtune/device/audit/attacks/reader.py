"""EIA-2c, the reader: a whole pre-trained encoder reads the released sequence and names each token.

Where the mechanism releases symbols (`channel`), the encoder reads a vector per symbol, at first the mean word
embedding of what may stand behind it; otherwise the expected word embedding under the codebook. Its output is compared
with the word embeddings and added to log P(release | id) + log P(id): before training the attack is the Bayes guess,
and a word outside the cluster stays as impossible as the mechanism makes it. All of it is trained on simulated
releases, with fresh noise in each step; texts are simulated when their turn comes, so there may be many.

B records, T rows per record, R rows, N secret tokens, V candidates, C of them, S symbols, D hidden width, E width of
the reader's word embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from privtune.device.audit.attacker_text import batches_of_length
from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.channel import prior_mean
from privtune.device.audit.attacks.learned import zero
from privtune.device.audit.observed import Observed, Seen
from privtune.device.audit.victim import Knowledge
from privtune.device.data.encode import IntArray
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.seeding import seeded

_WARM_UP = 100  # steps
_LEAST_RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A public encoder that the attacker fine-tunes; it need not be the model under attack.

    encoder: takes inputs_embeds and attention_mask, as those of transformers do; never trained in place.
    words_VE: its embedding of each id of the attacked model's vocabulary.
    """

    encoder: Any
    words_VE: Tensor

    @classmethod
    def of_model(cls, model: Any) -> Pretrained:
        """The attacked model's own pre-trained encoder. model: a task model of transformers."""
        words: Tensor = model.base_model.get_input_embeddings().weight.detach()
        return cls(encoder=model.base_model, words_VE=words.float())


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """How the reader trains.

    epochs: over its text.
    batch: records per step.
    learning_rate, encoder_rate: of embeddings and new layers, and of the encoder.
    """

    epochs: int = 2
    batch: int = 64
    learning_rate: float = 1e-3
    encoder_rate: float = 2e-4


def set_rates(optimizer: torch.optim.Optimizer, settings: ReaderSettings, step: int, steps: int) -> None:
    """The rates of a step: rising at first, then falling to a twentieth."""
    share = min(1.0, (step + 1) / min(_WARM_UP, steps / 4)) * max(_LEAST_RATE, 1 - step / steps)
    for group, full in zip(optimizer.param_groups, (settings.encoder_rate, settings.learning_rate), strict=True):
        group["lr"] = share * full


class NamingNet(nn.Module):
    """A trainable copy of the encoder that names each secret token of a record from vectors in place of its words."""

    def __init__(self, lab: Lab, pretrained: Pretrained) -> None:
        super().__init__()
        self.words_VE = pretrained.words_VE[lab.public.ids_V]  # not trained
        width, context = self.words_VE.shape[1], lab.victim.mechanism.context
        special = [*context.prefix[-1:], *context.suffix[:1]] or [min(context.special_ids, default=0)]
        self.special_PE = nn.Parameter(pretrained.words_VE[special].clone())  # before a text, and after it
        self.encoder = copy.deepcopy(pretrained.encoder).requires_grad_(True)
        states = self.encoder.config.hidden_size
        inner = nn.Sequential(nn.LayerNorm(states), nn.Linear(states, states), nn.GELU())
        self.head = nn.Sequential(inner, zero(nn.Linear(states, width)))
        # Direct evidence of the two neighbours (as in EIA-2b), which learns fast.
        self.beside = zero(nn.Linear(2 * width, width))
        self.out_VE = nn.Parameter(self.words_VE.clone())
        self.bias_V = nn.Parameter(lab.public.log_prior_V.clone())

    def named(self, seen: Seen, input_NE: Tensor, chosen_C: Tensor) -> Tensor:
        """Logits of each secret token over the chosen candidates, (N, C). Of `seen` only the layout counts."""
        first_R = (seen.place_R == 0).long()
        x_RE = self.special_PE[torch.where(first_R.bool(), 0, len(self.special_PE) - 1)]
        x_RE = x_RE.index_put((seen.row_N,), input_NE)
        shape = len(seen), int(seen.lengths_B.max())
        x_BTE = torch.zeros(*shape, x_RE.shape[1]).index_put((seen.record_R, seen.place_R), x_RE)
        mask_BT = (torch.arange(shape[1]) < seen.lengths_B.unsqueeze(1)).long()
        beside_BTE = self.beside(torch.cat([x_BTE.roll(1, 1), x_BTE.roll(-1, 1)], dim=2))
        place_N = seen.place_R[seen.row_N]
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            states_BTD = self.encoder(inputs_embeds=x_BTE, attention_mask=mask_BT).last_hidden_state
            named_NE = self.head(states_BTD[seen.record_N, place_N]) + beside_BTE[seen.record_N, place_N]
            named_NC = named_NE @ self.out_VE[chosen_C].T
        logits_NC: Tensor = named_NC.float() + self.bias_V[chosen_C]
        return logits_NC

    def optimizer(self, learning_rate: float, encoder_rate: float) -> torch.optim.AdamW:
        """The pre-trained blocks learn slowly, embeddings and new layers fast."""
        fast = [p for name, p in self.named_parameters() if not name.startswith("encoder.")]
        groups = [
            {"params": list(self.encoder.parameters()), "lr": encoder_rate},
            {"params": fast, "lr": learning_rate},
        ]
        return torch.optim.AdamW(groups, weight_decay=0.01, fused=True)


class ReaderNet(NamingNet):
    """From releases to logits over candidates."""

    def __init__(self, lab: Lab, knowledge: Knowledge, pretrained: Pretrained) -> None:
        super().__init__(lab, pretrained)
        self._lab, self._knowledge = lab, knowledge
        self._channel = lab.channel if knowledge == "adaptive" else None
        if self._channel is None:
            self.raw = zero(nn.Linear(lab.victim.mechanism.dim, self.words_VE.shape[1]))
        else:
            self.symbols_SE = nn.Parameter(prior_mean(self._channel, lab.public, self.words_VE))

    def forward(self, seen: Seen, chosen_C: Tensor) -> Tensor:
        """Logits of each secret token over the chosen candidates, (N, C)."""
        evidence_NC, input_NE = self._read(seen, chosen_C)
        return self.named(seen, input_NE, chosen_C) + evidence_NC

    def admitted(self, seen: Seen) -> Tensor:
        """Which candidates may occur anywhere in these records; bool (V,)."""
        if self._channel is None:
            return torch.ones(len(self.bias_V), dtype=torch.bool)
        return self._channel.admitted(self._channel.read(seen))

    def _read(self, seen: Seen, chosen_C: Tensor) -> tuple[Tensor, Tensor]:
        """log P(release | id) of the chosen candidates (N, C), and the encoder's input for each secret token (N, E)."""
        if self._channel is not None:
            symbol_N = self._channel.read(seen)
            return self._channel.log_likelihood(symbol_N, chosen_C), self.symbols_SE[symbol_N]
        model = self._lab.token_model(self._knowledge)
        y_ND = model.centred(seen)[seen.row_N]
        log_NV = model.log_density(y_ND)
        likely_NV = (log_NV + self._lab.public.log_prior_V).softmax(1)
        return log_NV[:, chosen_C], likely_NV @ self.words_VE + self.raw(y_ND)


class Reader(Attack):
    """The attack. pretrained: the attacker's encoder. Not for mechanisms that shorten."""

    name: ClassVar[str] = "EIA-2c"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: ReaderSettings

    def __init__(self, knowledge: Knowledge, pretrained: Pretrained, settings: ReaderSettings | None = None) -> None:
        super().__init__(knowledge, settings or ReaderSettings())
        self._pretrained = pretrained

    def prepare(self, lab: Lab, seed: int = 0) -> None:
        """The attack before any training; `train` may follow. Raises InvalidInput if the mechanism shortens."""
        if lab.victim.mechanism.shortens:
            raise InvalidInput("the reader needs a released row for each token")
        self._ids_V = lab.public.ids_V
        with seeded("audit", self.name, seed):
            self.net = ReaderNet(lab, self.knowledge, self._pretrained)
        self.optimizer = self.net.optimizer(self.settings.learning_rate, self.settings.encoder_rate)
        self.net.eval()
        self.fitted = True

    def train(self, lab: Lab, records: Sequence[IntArray], seed: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Train on these texts; yields (steps done, steps in all) after each step.

        start: steps that `net` and `optimizer` have already had, of an interrupted run with the same seed.
        """
        rng = np.random.default_rng(seed)
        lengths_B = np.array([len(ids_T) for ids_T in records])
        size, epochs = self.settings.batch, self.settings.epochs
        batches = [batch for _ in range(epochs) for batch in batches_of_length(lengths_B, size, rng)]
        counts_V = torch.bincount(lab.public.index(torch.from_numpy(np.concatenate(records)).long()).clamp(min=0))
        seen_C = counts_V.nonzero().flatten()  # the softmax runs over ids of the texts, which saves most of the work
        for step in range(start, len(batches)):
            set_rates(self.optimizer, self.settings, step, len(batches))
            self.net.train()
            drawn = lab.victim.simulate([records[index] for index in batches[step].tolist()], self.knowledge)
            self._step(drawn, lab, seen_C)
            self.net.eval()
            yield step + 1, len(batches)

    def _step(self, drawn: Observed, lab: Lab, seen_C: Tensor) -> None:
        number_N = lab.public.index(drawn.ids_N)
        known_N = number_N >= 0
        if not known_N.any():
            return
        chosen_C = seen_C[self.net.admitted(drawn.seen)[seen_C]]
        target_N = torch.searchsorted(chosen_C, number_N[known_N])
        loss = nn.functional.cross_entropy(self.net(drawn.seen, chosen_C)[known_N], target_N)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        self.prepare(lab, seed)
        with seeded("audit-train", self.name, seed):
            for done, steps in self.train(lab, lab.public.records, seed):
                say(f"{self.name} ({self.knowledge})", done / steps)

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        ids_NK = torch.empty(len(seen.row_N), min(GUESSES, len(self._ids_V)), dtype=torch.int64)
        everything_V = torch.arange(len(self._ids_V))
        ordered, _, order_N = seen.by_length()
        done = 0
        for part in ordered.batches(32):
            logits_NV = self.net(part, everything_V)
            ids_NK[order_N[done : done + len(logits_NV)]] = self._ids_V[logits_NV.topk(ids_NK.shape[1]).indices]
            done += len(logits_NV)
        return ids_NK

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.net.state_dict().items()}

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self.prepare(lab)
        self.net.load_state_dict(tensors)
