"""EIA-2, the learned inverters: a token-wise MLP, and a sequence model on the pre-trained blocks above the cut.

Both start as the adaptive codebook (`density`) and add a learned correction that is zero at first, so they start no
worse than it: logits = scale * (white(y) + correction) . white means + log prior. The output layer is the table of
whitened means, which covers ids that training never saw. The softmax of TRAINING runs only over ids of the public text,
which saves most of the work. Fresh noise in every step, AdamW.

B records, T rows per record, R rows, N secret tokens, S slots per row, V candidates, K guesses, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from privtune.device.audit.attacker_text import batches_of_length
from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.codebook import CHUNK
from privtune.device.audit.attacks.density import TokenModel, centred
from privtune.device.audit.attacks.encoders import NewEncoder, encode, trainable
from privtune.device.audit.metrics import spread
from privtune.device.audit.observed import Observed, Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.modeling.seeding import seeded

_LONGEST = 512


@dataclass(frozen=True, kw_only=True)
class LearnedSettings:
    """How the inverters train.

    epochs: over the public text.
    batch: records per step.
    learning_rate, encoder_rate: of new layers, and of pre-trained ones.
    hidden: width of the token-wise MLP.
    """

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 1e-3
    encoder_rate: float = 5e-5
    hidden: int = 2048


class Inverter(nn.Module):
    """From released rows to logits over candidates. A subclass provides the correction of each slot, (R, S, D)."""

    white_VD: Tensor
    bias_V: Tensor
    whiten_DD: Tensor
    base_D: Tensor
    offset_TD: Tensor
    fill_SD: Tensor

    def __init__(self, model: TokenModel, log_prior_V: Tensor, slots: int) -> None:
        super().__init__()
        self.slots, self.width = slots, model.means_VD.shape[1]
        white_VD = model.means_VD @ model.whiten_DD
        self.register_buffer("white_VD", white_VD)
        self.register_buffer("bias_V", log_prior_V - 0.5 * white_VD.square().sum(1))
        self.register_buffer("whiten_DD", model.whiten_DD)
        self.register_buffer("base_D", model.base_D)
        self.register_buffer("offset_TD", model.offset_TD)
        self.register_buffer("fill_SD", model.fill_SD)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def correction(self, seen: Seen, y_RD: Tensor) -> Tensor:
        """The learned correction of the whitened rows, (R, S, D). y_RD: centred and whitened."""
        raise NotImplementedError

    def features(self, seen: Seen) -> Tensor:
        """The vector of each secret token that is compared with the means, (N, D)."""
        y_RD = (centred(seen, self.offset_TD, self.fill_SD) - self.base_D) @ self.whiten_DD
        corrected_RSD = y_RD.unsqueeze(1) + self.correction(seen, y_RD)
        return corrected_RSD[seen.row_N, seen.slot_N.clamp(max=self.slots - 1)]

    def logits(self, features_ND: Tensor, chosen_C: Tensor | None = None) -> Tensor:
        """Over all candidates, or the chosen ones; (N, V) or (N, C)."""
        white_VD, bias_V = self.white_VD, self.bias_V
        if chosen_C is not None:
            white_VD, bias_V = white_VD[chosen_C], bias_V[chosen_C]
        return torch.addmm(bias_V, features_ND, white_VD.T) * self.log_scale.exp()


class TokenwiseNet(Inverter):
    """D -> hidden -> D -> V, for each row separately."""

    def __init__(self, model: TokenModel, log_prior_V: Tensor, slots: int, hidden: int) -> None:
        super().__init__(model, log_prior_V, slots)
        self.inner = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, hidden), nn.GELU())
        self.out = zero(nn.Linear(hidden, slots * self.width))

    def correction(self, seen: Seen, y_RD: Tensor) -> Tensor:
        """From the row alone."""
        out_RSD: Tensor = self.out(self.inner(y_RD)).unflatten(1, (self.slots, self.width))
        return out_RSD


class SequenceNet(Inverter):
    """Denoiser -> linear map -> encoder over the record -> correction. Pre-trained encoder, or a small new one.

    The denoiser is the posterior mean of the codebook over the ids of the public text, so the encoder's input resembles
    its pre-training data. The row itself is added through a map that is zero at first.
    """

    usual_C: Tensor

    def __init__(
        self,
        model: TokenModel,
        log_prior_V: Tensor,
        slots: int,
        encoder: nn.Module | None,
        usual_C: Tensor,
        place_TD: Tensor,
    ) -> None:
        super().__init__(model, log_prior_V, slots)
        self.register_buffer("usual_C", usual_C)
        self.raw = zero(nn.Linear(self.width, self.width))
        # Direct evidence of the two neighbours: a log-bilinear bigram model (Mnih & Hinton 2007), which learns fast.
        self.beside = zero(nn.Linear(2 * self.width, slots * self.width))
        self.denoise = nn.Linear(self.width, self.width)
        with torch.no_grad():
            self.denoise.weight.copy_((torch.linalg.inv(model.whiten_DD) @ model.clean_DD).T)
            self.denoise.bias.copy_(model.clean_D + model.base_D @ model.clean_DD)
        # The effect of the position on a clean state. A new encoder needs distinct positions even more.
        self.place_TD = nn.Parameter(torch.zeros(_LONGEST, self.width))
        with torch.no_grad():
            self.place_TD[: len(place_TD)] = place_TD[:_LONGEST]
            if encoder is None:
                self.place_TD.normal_(std=float(model.means_VD.std()))
        self.encoder = trainable(encoder, self.width)
        self.out = nn.Sequential(nn.LayerNorm(self.width), zero(nn.Linear(self.width, slots * self.width)))

    def correction(self, seen: Seen, y_RD: Tensor) -> Tensor:
        """From the whole record."""
        place_R = seen.place_R.clamp(max=_LONGEST - 1)
        mean_RD = self._posterior_mean(y_RD)
        x_RD = self.denoise(mean_RD) + self.raw(y_RD) + self.place_TD[place_R]
        states_RD = encode(self.encoder, seen, x_RD)
        # Rows of a record are adjacent, so the neighbours are one row away except at its ends.
        inside = seen.record_R[1:] == seen.record_R[:-1]
        before_RD = torch.cat([mean_RD[:1] * 0, mean_RD[:-1] * inside.unsqueeze(1)])
        after_RD = torch.cat([mean_RD[1:] * inside.unsqueeze(1), mean_RD[:1] * 0])
        out_RD = self.out(states_RD) + self.beside(torch.cat([before_RD, after_RD], dim=1))
        out_RSD: Tensor = out_RD.unflatten(1, (self.slots, self.width))
        return out_RSD

    @torch.no_grad()
    def _posterior_mean(self, y_RD: Tensor) -> Tensor:
        """Posterior mean of the whitened means given each row, under the codebook's distribution."""
        white_CD, bias_C = self.white_VD[self.usual_C], self.bias_V[self.usual_C]
        parts = [torch.addmm(bias_C, part, white_CD.T).softmax(1) @ white_CD for part in torch.split(y_RD, CHUNK)]
        return torch.cat(parts)


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer, whose output is zero at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LearnedInversion(Attack):
    """What both inverters share: training on simulated releases of public text."""

    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: LearnedSettings

    def __init__(self, knowledge: Knowledge, settings: LearnedSettings | None = None) -> None:
        super().__init__(knowledge, settings or LearnedSettings())

    def _net(self, lab: Lab, slots: int) -> Inverter:
        raise NotImplementedError

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        settings, victim, public = self.settings, lab.victim, lab.public
        self._ids_V = public.ids_V
        seen_C = (public.counts_V > 0).nonzero().flatten()
        slots = victim.simulate(public.records[: settings.batch], self.knowledge).seen.slots
        with seeded("audit", self.name, seed):
            self._network = self._net(lab, slots)
        groups = _groups(self._network, settings)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        steps = settings.epochs * -(-len(public.records) // settings.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        rng = np.random.default_rng(seed)
        self._network.train()
        done = 0
        with seeded("audit-train", self.name, seed):
            for _ in range(settings.epochs):
                for chosen in batches_of_length(public.lengths_B, settings.batch, rng):
                    records = [public.records[i] for i in chosen.tolist()]
                    self._step(victim.simulate(records, self.knowledge), seen_C, lab, optimizer)
                    schedule.step()
                    done += 1
                    say(f"{self.name} ({self.knowledge})", done / steps)
        self._network.eval()

    def _step(self, drawn: Observed, seen_C: Tensor, lab: Lab, optimizer: torch.optim.Optimizer) -> None:
        if not len(drawn.ids_N):
            return
        target_N = torch.searchsorted(seen_C, lab.public.index(drawn.ids_N))
        logits_NC = self._network.logits(self._network.features(drawn.seen), seen_C)
        loss = nn.functional.cross_entropy(logits_NC, target_N)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        numbers_NK, _ = self.candidates(seen, GUESSES)
        return torch.where(numbers_NK >= 0, self._ids_V[numbers_NK.clamp(min=0)], -1)

    @torch.no_grad()
    def candidates(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        """The best candidate numbers of each token and their logits, (N, count)."""
        # Built without slots (on clean vectors) but attacking rows of several tokens: deal one ranking to the slots.
        deal = seen.slots if self._network.slots == 1 else 1
        deep = min(count * deal, len(self._ids_V))
        total = len(seen.row_N)
        numbers_NK, values_NK = torch.empty(total, deep, dtype=torch.int64), torch.empty(total, deep)
        ordered, _, order_N = seen.by_length()
        done = 0
        for part in ordered.batches(64):
            for features_ND in torch.split(self._network.features(part), CHUNK):
                best = self._network.logits(features_ND).topk(deep)
                place_N = order_N[done : done + len(features_ND)]
                # Copied: small results between large buffers would keep the heap from reusing them.
                numbers_NK[place_N], values_NK[place_N] = best.indices, best.values
                done += len(features_ND)
        return (spread(numbers_NK, seen) if deal > 1 else numbers_NK), values_NK

    def _tensors(self) -> dict[str, Tensor]:
        slots = torch.tensor(self._network.slots)
        state = {f"net.{name}": value.clone() for name, value in self._network.state_dict().items()}
        return {**state, "ids_V": self._ids_V, "slots": slots}

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._ids_V = tensors["ids_V"]
        self._network = self._net(lab, int(tensors["slots"]))
        self._network.load_state_dict(
            {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
        )
        self._network.eval()


class Tokenwise(LearnedInversion):
    """EIA-2a: a token-wise MLP."""

    name: ClassVar[str] = "EIA-2a"

    def _net(self, lab: Lab, slots: int) -> Inverter:
        model = lab.token_model(self.knowledge)
        return TokenwiseNet(model, lab.public.log_prior_V, slots, self.settings.hidden)


class SequenceInversion(LearnedInversion):
    """EIA-2b: the whole record at once, through the pre-trained blocks above the cut."""

    name: ClassVar[str] = "EIA-2b"

    def _net(self, lab: Lab, slots: int) -> Inverter:
        usual_C = (lab.public.counts_V > 0).nonzero().flatten()
        model = lab.token_model(self.knowledge)
        place_TD = lab.token_model("oblivious").offset_TD
        return SequenceNet(model, lab.public.log_prior_V, slots, lab.encoder, usual_C, place_TD)


def _groups(network: Inverter, settings: LearnedSettings) -> list[dict[str, object]]:
    """Pre-trained blocks learn slowly, new layers fast."""
    slow = [p for name, p in network.named_parameters() if name.startswith("encoder.")]
    fast = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
    new = isinstance(getattr(network, "encoder", None), NewEncoder)
    slow_rate = settings.learning_rate if new else settings.encoder_rate
    return [{"params": fast, "lr": settings.learning_rate}, {"params": slow, "lr": slow_rate}]
