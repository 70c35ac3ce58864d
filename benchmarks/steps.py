"""What the speed benchmarks time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[], object]


def step_of(gru: nn.GRU, x: Tensor, mode: str) -> Step:
    """Return a forward without gradient, or a forward and backward for the parameters' gradients."""
    gradient = torch.randn(*x.shape[:2], gru.hidden_size, device=x.device, dtype=x.dtype)

    def inference() -> None:
        with torch.no_grad():
            gru(x)

    def training() -> None:
        gru.zero_grad()
        gru(x)[0].backward(gradient)

    return inference if mode == "inference" else training
