"""Head and loss on the device, and the tail where a job has one: labels and losses never leave it.

A classification head is trained here by its own optimiser; a language model's head is the tied embedding, frozen.
Dropout is a function of (seed, step, micro-batch), so a resumed job repeats the undisturbed run exactly.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from privtune.device.model.objectives import loss_N
from privtune.device.model.tail import States, Tail, pieces
from privtune.shared.errors import InternalError, NonFinite
from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.checkpoint import load_checkpoint, load_parameters, save_checkpoint
from privtune.shared.modeling.optim import build_optimizer, build_schedule, clip_gradients
from privtune.shared.modeling.partition import Head
from privtune.shared.modeling.seeding import seeded
from privtune.shared.tracing import span

# Logits in memory at a time, in rows and in bytes: a loss holds them three times, and a language model's batch would
# have gigabytes.
CHUNK_ROWS = 256
CHUNK_BYTES = 2 << 20


class HeadTrainer:
    """Owns the head, the tail, their optimiser and the loss.

    tail: the last blocks, where they train here; None: the head reads what the cloud sends.
    label_epsilon: of the labels, where they are randomised.
    rows_at_once: rows of logits in memory at a time.
    """

    def __init__(
        self,
        head: Head,
        optim: OptimSpec,
        *,
        seed: int,
        total_steps: int,
        tail: Tail | None = None,
        label_epsilon: float | None = None,
    ) -> None:
        self.head, self.tail, self._optim, self._seed, self._total_steps = head, tail, optim, seed, total_steps
        self._label_epsilon = label_epsilon
        with torch.no_grad():
            classes = head.eval()(torch.zeros(1, head.config.hidden_size)).shape[-1]
        self.rows_at_once = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (4 * classes)))
        self._initial = {name: value.clone() for name, value in self._state().items()}
        self.start_over()

    @property
    def _of_head(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.head.parameters() if parameter.requires_grad]

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return self._of_head + (self.tail.parameters if self.tail is not None else [])

    def _state(self) -> dict[str, Tensor]:
        state = dict(self.head.state_dict()) if self._of_head else {}
        return state | (self.tail.state() if self.tail is not None else {})

    @property
    def trainable_parameters(self) -> int:
        """Number of parameters trained on the device."""
        return sum(parameter.numel() for parameter in self._trained)

    def loss(
        self, out_ND: Tensor, targets_N: Tensor, *, step: int, micro_batch: int, items: int, piece: int = 0
    ) -> tuple[float, Tensor]:
        """Sum of the losses over N, divided by the step's `items`, and d loss / d out_ND.

        Accumulates the head's gradients. Raises `NonFinite` when the loss is NaN or infinite.
        """
        self.head.train()
        out_ND = out_ND.requires_grad_(True)
        total = 0.0
        with seeded("head", self._seed, step, micro_batch, *([piece] if piece else [])):
            for out_CD, targets_C in zip(
                torch.split(out_ND, self.rows_at_once), torch.split(targets_N, self.rows_at_once), strict=True
            ):
                loss = loss_N(self.head(out_CD).float(), targets_C, self._label_epsilon).sum() / items
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
        gradient_ND = out_ND.grad
        if gradient_ND is None or not total < float("inf"):
            raise NonFinite(f"the loss of step {step} is not finite; lower --learning-rate or use --precision fp32")
        return total, gradient_ND

    def learn(
        self,
        states: States,
        readout_N: Tensor,
        targets_N: Tensor,
        *,
        step: int,
        micro_batch: int,
        items: int,
    ) -> float:
        """The loss of a micro-batch through the tail; accumulates the gradients of tail and head, which stay here."""
        if self.tail is None:
            raise InternalError("a job without a tail learns through the cloud")
        self.tail.train(True)
        total = 0.0
        for number, (some, readout_P, targets_P) in enumerate(pieces(states, readout_N, targets_N)):
            place = {"step": step, "micro_batch": micro_batch, "piece": number}
            with seeded("tail", self._seed, *place.values()):
                out_PD = self.tail.forward(some, readout_P)
                loss, gradient_PD = self.loss(out_PD.detach(), targets_P, **place, items=items)
                # The same as `out_PD.backward(gradient_PD)`, which would import sympy (33 MB).
                (out_PD * gradient_PD).sum().backward()  # type: ignore[no-untyped-call]
            total += loss
        return total

    @torch.no_grad()
    def out(self, states: States, readout_N: Tensor) -> Tensor:
        """out_ND of the tail without dropout."""
        if self.tail is None:
            raise InternalError("a job without a tail gets its outputs from the cloud")
        self.tail.train(False)
        # Read-out positions are sorted by record, so the parts are in their order.
        parts = [self.tail.forward(some, readout_P) for some, readout_P, _ in pieces(states, readout_N, readout_N)]
        return torch.cat(parts)

    @torch.no_grad()
    def logits(self, out_ND: Tensor) -> Tensor:
        """logits_NC without dropout."""
        logits_NC: Tensor = self.head.eval()(out_ND)
        return logits_NC.float()

    def step(self) -> float:
        """One optimiser step on what is trained here; the gradient norm before clipping (0 where nothing is)."""
        with span("optimiser"):
            norm = clip_gradients(self._trained, self._optim.max_grad_norm)
            if not math.isfinite(norm):
                raise NonFinite("the device's gradient is NaN or infinite; lower --learning-rate")
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._schedule.step()
        return norm

    def save(self, root: Path, step: int, *, candidate: bool = False, candidates: int = 0) -> None:
        """Checkpoint the state after `step` steps. candidate, candidates: see `save_checkpoint`."""
        with span("checkpoint", step=step):
            save_checkpoint(
                root,
                step,
                self._state(),
                self._optimizer,
                self._schedule,
                candidate=candidate,
                candidates=candidates,
            )

    def rewind(self, root: Path, step: int) -> None:
        """Go to the state after `step` steps: a checkpoint under `root`, or the beginning for 0."""
        self.start_over()
        if step > 0:
            self._load(load_checkpoint(root, step, self._optimizer, self._schedule))

    def load(self, root: Path, step: int) -> None:
        """Load only the parameters of a checkpoint, for prediction."""
        self._load(load_parameters(root, step))

    def start_over(self) -> None:
        """Go to the state before the first step."""
        self._load(self._initial)
        # A frozen head has nothing to train; a placeholder gives schedule and checkpoints the same form.
        parameters = self._of_head or [torch.nn.Parameter(torch.zeros(1))]
        groups = [{"params": parameters, "lr": self._optim.head_learning_rate or self._optim.learning_rate}]
        if self.tail is not None:
            groups.append({"params": self.tail.parameters, "lr": self._optim.learning_rate})
        self._optimizer = build_optimizer(groups, self._optim)
        self._schedule = build_schedule(self._optimizer, self._optim, self._total_steps)
        self._optimizer.zero_grad(set_to_none=True)  # of a step that a lost connection left unfinished

    def _load(self, state: dict[str, Tensor]) -> None:
        mine = self.tail.state().keys() if self.tail is not None else set()
        if self.tail is not None:
            self.tail.load({name: value for name, value in state.items() if name in mine})
        if self._of_head:
            self.head.load_state_dict({name: value for name, value in state.items() if name not in mine})
