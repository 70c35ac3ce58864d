"""Which bit widths a fit quantizes with: given ones, or those that a search finds at calibration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from qgru.callbacks.agreement import failing_together
from qgru.callbacks.batches import first_batches
from qgru.callbacks.calling import outputs_in_float
from qgru.callbacks.packages import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from qgru.callbacks.preflight import copied
from qgru.callbacks.progress import reporting
from qgru.configs import load_config
from qgru.convert import quantized_layers
from qgru.files import shown
from qgru.gru import QuantGRU
from qgru.presets import AUTO
from qgru.schema import BitwidthConfig
from qgru.search import Found, relative_cost, search
from qgru.search.assign import check_budget
from qgru.search.difference import tensors_of
from qgru.search.files import write_found
from qgru.stages.passes import ForwardFn, extra_pass
from qgru.targets import check, describe, load_target, preset


class BitWidths:
    """The bit widths of a fit.

    Args:
        config: a preset's name, a file's path, a mapping, or ``"auto"``, which searches them.
        budget: the most that they may cost, int8 being 1; None is 1.
        max_error: of the outputs; found is the least cost that has no more, where the budget allows.
        target: what a chip takes: the name of a file of ``conf/target``, a path, or a mapping.
        points: how many to choose along the front, from the budget down.
        logits: the outputs are logits, compared by KL divergence where they are compared.

    Attributes:
        config: those to begin with: int8 until others are found.
        is_searched: True for ``"auto"``.
        logits: as given.
        target: what `target` names; None where none was given for bit widths that are given.
        found: what the last fit's search found, on rank zero; None where none was searched.

    Raises:
        ValueError, FileNotFoundError: naming the argument that is not one of these, or is for ``"auto"`` alone.
    """

    def __init__(
        self,
        config: str | Mapping[str, Any] | BitwidthConfig,
        budget: float | None = None,
        max_error: float | None = None,
        target: str | Mapping[str, Any] | None = None,
        points: int = 1,
        logits: bool = False,
    ) -> None:
        self.is_searched = isinstance(config, str) and config == AUTO
        self.config = load_config("int8" if self.is_searched else config)
        _check_positive("budget", budget)
        _check_positive("max_error", max_error)
        if type(points) is not int or points < 1:
            raise ValueError(f"points is {shown(points)}; expected an integer of 1 or more")
        if type(logits) is not bool:
            raise ValueError(f"logits is {shown(logits)}; expected true or false")
        if max_error is not None and points > 1:
            raise ValueError(f"max_error is {max_error} and points is {points}; expected one of them")
        given = {"budget": budget, "max_error": max_error, "points": points - 1}
        if not self.is_searched and any(given.values()):
            names = " and ".join(name for name, value in given.items() if value)
            raise ValueError(f"{names} is for a search, and config is {shown(config)}; expected {AUTO!r}")
        self.target = load_target(target) if self.is_searched or target is not None else None
        self._budget = 1.0 if budget is None else float(budget)
        self._max_error, self._points, self.logits = max_error, points, logits
        self.found: Found | None = None

    def apply(self, pl_module: LightningModule, layers: Mapping[str, QuantGRU]) -> None:
        """Set the bit widths of the layers that are not calibrated, as a fit starts.

        Raises:
            MisconfigurationException: where the target does not take them, or the budget can't be met on it.
        """
        self.found = None
        uncalibrated = {name for name, layer in layers.items() if not layer.is_calibrated()}
        if self.target is not None and not self.config.disable_quantization:
            self._check_target(pl_module, bool(uncalibrated))
        if uncalibrated and self.is_searched:
            self._check(pl_module, sorted(layers.keys() - uncalibrated))
        for name, layer in layers.items():
            if name in uncalibrated:
                layer.load_bitwidth_config(self.config)
            elif layer.bitwidth_config != self.config and not self.is_searched:
                rank_zero_warn(
                    f"qgru: {name} is calibrated and keeps its grids; their bit widths are not those of config"
                )
        if self.config.disable_quantization:
            rank_zero_info("qgru: the configuration has disable_quantization: the run stays in float")

    def _check_target(self, pl_module: LightningModule, is_new: bool) -> None:
        """Refuse what can't be exported to the target; say what it will compute otherwise than is trained."""
        try:
            config = preset(self.target) if self.is_searched else self.config
            different = check(pl_module, self.target, config if is_new else None)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        if different:
            rank_zero_warn(f"qgru: {self.target.name} will not compute what is trained:\n{describe(different)}")

    def _check(self, pl_module: LightningModule, calibrated: list[str]) -> None:
        if calibrated:
            raise MisconfigurationException(
                f"{calibrated[0]} is calibrated and other layers are not; expected config={AUTO!r} with layers that "
                "are all to be calibrated, for one configuration is found for all"
            )
        try:
            check_budget(self.target.rules, partial(relative_cost, pl_module), self._budget)
        except ValueError as error:
            raise MisconfigurationException(f"config={AUTO!r}: {error}") from error

    def check_outputs(
        self, trainer: Trainer, pl_module: LightningModule, forward_fn: ForwardFn | None, batch: Any
    ) -> None:
        """Find out, before the first step, whether a call that goes past the module's `forward` can be searched by.

        Raises:
            RuntimeError: on every rank, where it returns nothing that could be compared.
        """
        if not self.is_searched or batch is None:
            return
        with failing_together(), extra_pass(pl_module):
            if not tensors_of(outputs_in_float(trainer, forward_fn, pl_module, copied(batch))):
                raise RuntimeError(
                    f"config={AUTO!r} compares what a call returns, and forward_fn neither calls "
                    f"{type(pl_module).__name__} itself nor returns a floating tensor; expected one that does"
                )

    def find(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        forward_fn: ForwardFn | None = None,
        qat: bool = True,
        folder: Path | None = None,
    ) -> None:
        """Search, where that is asked for, and set what was found; a collective call, between calibration and grids.

        Rank zero searches, on the first batches that it calibrated on; all ranks get its configuration.

        Args:
            trainer: gives the batches.
            pl_module: its layers have observed data.
            forward_fn: as calibration's; compared is what the module's own `forward` returns in the call, or where the
                call goes past it, what the call returns.
            qat: quantization-aware training follows.
            folder: gets what was found, see `write_found`; None writes nothing.

        Raises:
            RuntimeError, ValueError: on every rank, where the search fails.
        """
        if not self.is_searched:
            return
        config = None
        with failing_together():
            if trainer.is_global_zero:
                self.found = self._search(trainer, pl_module, partial(outputs_in_float, trainer, forward_fn), qat)
                config = self.found.chosen[0].config
                rank_zero_info(f"qgru: {_in_words(self.found)}")
                _write(self.found, folder)
        config = trainer.strategy.broadcast(config)
        for layer in quantized_layers(pl_module).values():
            layer.load_bitwidth_config(config)

    def _search(self, trainer: Trainer, pl_module: LightningModule, forward_fn: ForwardFn, qat: bool) -> Found:
        batches = first_batches(trainer, pl_module)
        asked = {"budget": self._budget, "target": self.target.rules, "qat": qat, "points": self._points}
        with reporting(trainer, "searching bit widths") as progress:
            asked |= {"forward_fn": forward_fn, "logits": self.logits, "progress": progress}
            try:
                return search(pl_module, batches, max_error=self._max_error, **asked)
            except ValueError as error:
                if self._max_error is None:
                    raise
                rank_zero_warn(f"qgru: {error}; found is what has the least error within the budget")
                return search(pl_module, batches, **asked)


def _in_words(found: Found) -> str:
    chosen, int8 = found.chosen[0], found.presets["int8"]
    return (
        f"found bit widths that cost {chosen.cost:.3g} (int8: 1) with an error of {chosen.measured:.3g} before QAT, "
        f"predicted {chosen.predicted:.3g} (int8: {int8.measured:.3g}); {len(found.measured)} configurations measured"
    )


def _write(found: Found, folder: Path | None) -> None:
    """Write what was found; a failed write is a warning: it must not cost the training."""
    try:
        if folder is not None:
            write_found(found, folder)
    except OSError as error:
        rank_zero_warn(f"qgru: what was found was not written, and the fit goes on without it: {error}")


def _check_positive(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and isfinite(value) and value > 0):
        raise ValueError(f"{name} is {shown(value)}; expected a finite number above 0")
