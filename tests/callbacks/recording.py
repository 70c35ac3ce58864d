"""Models whose optimizers note with which learning rates they step."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import pytest
from torch import nn
from torch.optim import Adam, Optimizer

from .models import Model


class Recording(Adam):
    """Notes with which learning rates it steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.used: list[list[float]] = []

    def _init_group(self, group: dict[str, Any], *args: Any) -> Any:  # called in the step, after the closure
        if group is self.param_groups[0]:
            self.used.append([float(group["lr"]) for group in self.param_groups])
        return super()._init_group(group, *args)


class Scheduled(Model):
    """Two parameter groups, and any scheduler."""

    def __init__(self, schedule: Any = None, interval: str = "step", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schedule, self.interval = schedule, interval

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.gru.parameters()}, {"params": self.head.parameters(), "lr": 0.004}]
        self.optimizer = Recording(groups, lr=0.01)
        if self.schedule is None:
            return self.optimizer
        scheduler = {"scheduler": self.schedule(self.optimizer), "interval": self.interval, "monitor": "val_loss"}
        return {"optimizer": self.optimizer, "lr_scheduler": scheduler}


def cosine(step: int, total: int) -> float:
    return 0.01 + 0.99 * (1 + cos(pi * step / total)) / 2


def expected(total: int, before: int) -> list[Any]:
    """The rates of steps that are taken before quantization-aware training, and of the `total` that follow."""
    factors = [1.0] * before + [cosine(step, total) for step in range(total)]
    return [pytest.approx([0.01 * factor, 0.004 * factor], rel=1e-9) for factor in factors]


class Manual(Model):
    """Steps one optimizer in every batch, the other one in every second."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for index, optimizer in enumerate(self.optimizers()):
            if batch_idx % (index + 1) == 0:
                optimizer.zero_grad()
                self.manual_backward(nn.functional.mse_loss(self(batch[0]), batch[1]))
                optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:
        self.both = Recording(self.gru.parameters(), lr=0.01), Recording(self.head.parameters(), lr=0.004)
        return list(self.both)
