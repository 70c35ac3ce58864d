"""What ``benchmarks/search.py`` searches and trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.recipes import Job
from qgru.search import Rules, load_rules
from qgru.search.assign import QAT_DISCOUNT

BUDGETS, DISCOUNTS = (0.8, 1.0), (QAT_DISCOUNT, 0.2, 1.0)


@dataclass(frozen=True)
class Setting:
    """What a search is asked for."""

    target: str
    budget: float
    discount: float

    def __str__(self) -> str:
        return f"{self.target}_{self.budget:g}_{self.discount:g}"

    @property
    def rules(self) -> Rules:
        """The target's rules."""
        return load_rules(self.target)


FREE = tuple(Setting("fpga", budget, discount) for discount in DISCOUNTS for budget in BUDGETS)
BOUND = tuple(
    Setting(target, budget, QAT_DISCOUNT)
    for target, budget in {"npu_8x8": 1.2, "npu_8x16": 1.3, "npu_4x8": 0.8}.items()
)
STACKED = tuple(Setting("fpga", budget, QAT_DISCOUNT) for budget in (0.8, 1.0))

SUMS = ("matmul.Wx", "matmul.Rh", "op.rRh", "op.old_contrib", "op.new_contrib")
"""What a new state is summed up from."""

VARIANTS: Mapping[str, Mapping[str, int]] = {
    "sums, g_out 16": dict.fromkeys((*SUMS, "gate.g_out"), 16),
    "sums, g_out 16, g_pre 12": {**dict.fromkeys((*SUMS, "gate.g_out"), 16), "gate.g_pre": 12},
}
"""Of int8, by the operators that are wider."""


@dataclass(frozen=True)
class Model:
    """A recipe, or a variant of one, and the searches on it."""

    name: str
    recipe: str
    settings: tuple[Setting, ...] = ()
    presets: tuple[str, ...] = ("w4a8", "npu_4x8", "int8", "npu_8x8", "npu_8x16", "int8_mixed", "int16")
    options: tuple[str, ...] = ()

    def first(self, seed: int) -> Job:
        """Return the run that leaves the float model."""
        return Job(self.recipe, "", seed, self.options).first


STACK = ("model.num_layers=2", "model.bidirectional=true", "model.hidden_size=16", "trainer.max_epochs=60")
MODELS = {
    model.name: model
    for model in (
        Model("stack", "cascaded_tanks", STACKED, ("int8", "int8_mixed"), STACK),
        Model("cascaded_tanks", "cascaded_tanks", FREE + BOUND),
        Model("mackey_glass", "mackey_glass", FREE + BOUND),
        Model("sea_surface_temperature", "sea_surface_temperature", (), ("int8", "int8_mixed")),
        Model("speaker_identification", "speaker_identification", (), ("int8", "int8_mixed")),
    )
}
