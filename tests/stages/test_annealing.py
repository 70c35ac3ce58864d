"""Learning rates that fall while steps are taken, and only then."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, inf, nan, pi
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from qgru.stages import anneal


class Recording(SGD):
    """Notes with which learning rates it steps; its step is made of its base class's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.used: list[list[float]] = []

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        self.used.append([float(group["lr"]) for group in self.param_groups])
        return super().step(closure)


def parameters(count: int = 1) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, dtype=torch.float64) * (index + 1)) for index in range(count)]


def train(optimizer: Optimizer, steps: int, scheduler: Any = None) -> list[list[Any]]:
    """Take steps on a sum of squares; returns each group's own rate after each of them."""
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p**2).sum() for group in optimizer.param_groups for p in group["params"]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        seen.append([group["lr"] for group in optimizer.param_groups])
    return seen


def cosine(step: int, total: int) -> float:
    return 0.01 + 0.99 * (1 + cos(pi * step / total)) / 2


def test_equals_torchs_cosine() -> None:
    (ours,), (theirs,) = parameters(), parameters()
    optimizer = AdamW([ours], lr=0.03)
    with anneal(optimizer, total_steps=20):
        train(optimizer, 20)
    reference = AdamW([theirs], lr=0.03)
    train(reference, 20, lr_scheduler.CosineAnnealingLR(reference, T_max=20, eta_min=0.0003))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert optimizer.param_groups[0]["lr"] == 0.03


SCHEDULERS = {
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.7),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 7),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=13),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=2),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_as_they_would(name: str) -> None:
    """Those that compute a rate from the last one, too; every group has its own."""

    def run(is_annealed: bool) -> tuple[list[list[float]], list[list[float]]]:
        a, b = parameters(2)
        optimizer = Recording([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.003}], lr=1.0, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        if is_annealed:
            anneal(optimizer, total_steps=12, scale=3.0)
        return train(optimizer, 12, scheduler), optimizer.used

    plain, without = run(False)
    own, used = run(True)
    assert own == plain and len({rate for rates in own for rate in rates}) > 2
    expected = [[rate * 3 * cosine(t, 12) for rate in rates] for t, rates in enumerate(without)]
    assert used == [pytest.approx(rates, rel=1e-12) for rates in expected]


def test_tensor_rates_stay_the_same_tensors() -> None:
    """A CUDA graph holds on to them; groups that are given none share the optimizer's."""
    (a, b), rate = parameters(2), torch.tensor(0.1, dtype=torch.float64)
    optimizer = Adam([{"params": [a]}, {"params": [b]}], lr=rate)
    used: list[float] = []
    with anneal(optimizer, total_steps=4):
        optimizer.register_step_pre_hook(lambda *_: used.append(rate.item()))
        seen = train(optimizer, 4)
    assert used == pytest.approx([0.1 * cosine(t, 4) for t in range(4)], rel=1e-12)
    assert all(group_rate is rate for rates in seen for group_rate in rates) and rate.item() == 0.1


def test_a_closure_reads_and_sets_the_schedules_rate() -> None:
    (weight,) = parameters()
    optimizer = Recording([weight], lr=0.5)
    seen = []

    def closure() -> Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["lr"] = 0.25
        weight.grad = torch.ones_like(weight)
        return weight.sum()

    with anneal(optimizer, total_steps=2, scale=2.0):
        assert optimizer.step(closure) == 3.0
        assert weight.tolist() == [1 - 0.25 * 2] * 3
        optimizer.step(closure=closure)
    assert seen == [0.5, 0.25] and optimizer.param_groups[0]["lr"] == 0.25
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.5 - 0.25 * 2 * cosine(1, 2)))


@pytest.mark.parametrize("where", ["closure", "step"])
def test_a_step_that_fails(where: str) -> None:
    class Failing(SGD):
        fails = where == "step"

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise KeyError("fails")
            return super().step(closure)

    def closure() -> None:
        raise KeyError("fails")

    optimizer = Failing(parameters(), lr=0.5)
    annealing = anneal(optimizer, total_steps=4, scale=2.0)
    with pytest.raises(KeyError):
        optimizer.step(closure)
    optimizer.fails = False
    train(optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.fails = True
    with pytest.raises(KeyError):
        optimizer.step()
    annealing.remove()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_resumed_and_ended() -> None:
    (whole,), (halves,) = parameters(), parameters()
    with anneal(optimizer := Recording([whole], lr=0.1), total_steps=6):
        train(optimizer, 6)
    optimizer = Recording([halves], lr=0.1)
    for start in (0, 2):
        with anneal(optimizer, total_steps=6, start=start):
            train(optimizer, 2 if start == 0 else 4)
    assert torch.equal(halves, whole)
    train(optimizer, 1)
    assert optimizer.used[-1] == [0.1] and optimizer.used[-2] != [0.1]


def test_a_step_made_of_its_base_classs_is_one_step() -> None:
    """Hooks run around both, once torch has put hooks around the base class's."""
    SGD(parameters(), lr=1.0)
    (weight,) = parameters()
    optimizer = Recording([weight], lr=0.1)
    with anneal(optimizer, total_steps=3):
        train(optimizer, 3)
    assert optimizer.used == [pytest.approx([0.1 * cosine(t, 3)]) for t in range(3)]
    expected = 1.0
    for (rate,) in optimizer.used:
        expected -= rate * 2 * expected
    assert weight.tolist() == pytest.approx([expected] * 3)


def test_past_the_end_the_least_rate_stays() -> None:
    optimizer = Recording(parameters(), lr=1.0)
    with anneal(optimizer, total_steps=2):
        train(optimizer, 4)
    assert optimizer.used[2:] == [pytest.approx([0.01])] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"total_steps": 3, "start": -1}, "start is -1"),
        *(({"total_steps": 3, "scale": scale}, f"scale is {scale!r}") for scale in (0, -1.0, nan, inf, True, "3")),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    optimizer = Recording(parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        anneal(optimizer, **arguments)
    train(optimizer, 1)
    assert optimizer.used == [[0.1]]


def test_groups_without_a_rate_are_left_alone() -> None:
    class Own(Optimizer):
        def step(self, closure: Any = None) -> None:
            self.seen = [dict(group) for group in self.param_groups]

    optimizer = Own(parameters(), {"lr": None})
    with anneal(optimizer, total_steps=2) as annealing:
        optimizer.step()
        assert annealing.learning_rates() == []
    assert optimizer.seen[0]["lr"] is None


def test_optimizers_without_hooks_are_refused() -> None:
    class Wrapper(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    with pytest.raises(TypeError, match=r"Wrapper has no hooks.*super\(\).__init__"):
        anneal(Wrapper(SGD(parameters(), lr=0.1)), total_steps=2)
