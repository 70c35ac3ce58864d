"""Where between the start of quantization-aware training and the end of the fit its learning rates are."""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

import torch

from qgru.callbacks.packages import LightningModule, Trainer, rank_zero_warn
from qgru.stages.annealing import FLOOR, ScaledSteps, check_scale, cosine_factor

_NAME = "qat/learning_rate"


class Span(NamedTuple):
    """The way from the start of quantization-aware training to one limit of the fit."""

    done: int
    total: int
    unit: str


class Annealer:
    """Scales the trainer's learning rates from the start of quantization-aware training on, and lets them fall.

    Args:
        anneal: whether they fall along a cosine to 1 % of what the schedule says.
        scale: a factor of all of them.

    Attributes:
        began: the epoch and global step at which quantization-aware training began; None before that.

    Raises:
        ValueError: for an argument that is not one of these, naming it.
    """

    def __init__(self, anneal: bool, scale: float) -> None:
        if not isinstance(anneal, bool):
            raise ValueError(f"anneal is {anneal!r}; expected True or False")
        self._anneal, self._scale = anneal, check_scale("learning_rate_scale", scale)
        self._factor = 1.0
        self._scaled: dict[int, ScaledSteps | None] = {}
        self.began: tuple[int, int] | None = None

    def begin(self, trainer: Trainer) -> str:
        """Note where quantization-aware training begins, unless it has before; return what to say of it."""
        if self.began is None:
            self.began = trainer.current_epoch, trainer.global_step
        return self._described(trainer)

    def before_batch(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        """Set the factor of a batch's steps, and log their learning rates as `self.log` of a training step does."""
        if self.began is None or (not self._anneal and self._scale == 1):
            return
        progress = max((span.done / span.total for span in self._spans(trainer, batch_idx)), default=0.0)
        self._factor = self._scale * (cosine_factor(progress) if self._anneal else 1.0)
        scaled = [self._scaled_steps(optimizer) for optimizer in trainer.optimizers]
        if trainer.loggers:
            rates = [rate for steps in scaled if steps is not None for rate in steps.learning_rates()]
            names = [_NAME] if len(rates) == 1 else [f"{_NAME}/{group}" for group in range(len(rates))]
            for name, rate in zip(names, rates, strict=True):
                pl_module.log(name, torch.as_tensor(rate), on_step=True, on_epoch=False)  # a number waits for the GPU

    def remove(self) -> None:
        """Let the optimizers step as they did."""
        for steps in self._scaled.values():
            if steps is not None:
                steps.remove()
        self._scaled.clear()

    def _scaled_steps(self, optimizer: object) -> ScaledSteps | None:
        """Return an optimizer's; made when it is first seen, for a fit may be given others as it goes."""
        if id(optimizer) not in self._scaled:
            try:
                self._scaled[id(optimizer)] = ScaledSteps(optimizer, lambda _: self._factor)
            except TypeError as error:
                rank_zero_warn(f"qgru: the learning rate stays what its schedule says: {error}")
                self._scaled[id(optimizer)] = None
        return self._scaled[id(optimizer)]

    def _spans(self, trainer: Trainer, batch_idx: int = 0) -> list[Span]:
        """Return the way to each limit that is known; the fit ends at the first one that is reached.

        Steps are counted as epochs and batches of an epoch, so that an epoch that is cut short, or accumulates other
        numbers of batches, does not set the count off. Where a training step optimizes manually it may take any number
        of steps; batches are counted then.
        """
        epoch, step = self.began
        spans, epochs = [], -1 if trainer.max_epochs is None else trainer.max_epochs
        automatic = trainer.lightning_module.automatic_optimization
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        if epochs > epoch and batches == inf:
            spans.append(Span(trainer.current_epoch - epoch, epochs - epoch, "epochs"))
        elif epochs > epoch:
            steps, unit = ceil(batches / accumulated), "steps" if automatic else "batches"
            done = (trainer.current_epoch - epoch) * steps + batch_idx // accumulated
            spans.append(Span(done, (epochs - epoch) * steps, unit))
        if trainer.max_steps > step:
            spans.append(Span(trainer.global_step - step, trainer.max_steps - step, "steps"))
        return spans

    def _described(self, trainer: Trainer) -> str:
        times = "" if self._scale == 1 else f" are {self._scale:g} times the schedule's"
        if not self._anneal:
            return times and f"; learning rates{times}"
        ways = {}
        for span in sorted(self._spans(trainer), key=lambda span: span.total - span.done):
            done = f" ({span.done} done)" if span.done else ""
            ways.setdefault(span.unit, f"{span.total} {span.unit}{done}")
        if not ways:
            fall = "do not fall: neither max_epochs nor max_steps says when the fit ends"
        else:
            fall = f"fall along a cosine to {100 * FLOOR:g} % over {' or '.join(ways.values())}"
        return f"; learning rates{times and f'{times}, and'} {fall}"
