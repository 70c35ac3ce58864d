"""The whole way in one callback: float training, calibration, quantization-aware training, export."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from torch.utils.hooks import RemovableHandle

from qgru.callbacks import random_state
from qgru.callbacks.auto import BitWidths
from qgru.callbacks.batches import rewind
from qgru.callbacks.calibrate import Calibrate
from qgru.callbacks.checkpoint_io import write_weights
from qgru.callbacks.compatibility import averages_later, check_averaging, check_strategy
from qgru.callbacks.export import Export
from qgru.callbacks.finalize import Finalize
from qgru.callbacks.monitors import EarlyStopGate, reset_monitors
from qgru.callbacks.packages import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    classes,
    rank_zero_warn,
)
from qgru.callbacks.pickling import PickledAsArguments
from qgru.callbacks.preflight import announce
from qgru.callbacks.qat import QAT
from qgru.callbacks.ranks import exclude_from_broadcast
from qgru.callbacks.refine import refine
from qgru.callbacks.schedule import calibration_epoch
from qgru.callbacks.weights import exported_weights, share_quantization_state
from qgru.convert import convert, quantized_layers
from qgru.exclusion import check_matches, check_patterns, matching, staying_float
from qgru.stages.calibration import uncalibrated_layers
from qgru.stages.passes import ForwardFn

_STATE = "qgru_lifecycle"


class QuantizationLifecycle(PickledAsArguments, Callback):
    """Takes a model that holds `nn.GRU` from float training to exported integers within one fit.

    Every `nn.GRU` is converted in place, in `setup`; until calibration it computes what it did. At the start of one
    epoch the layers are calibrated on training data and finalized, and from there on training is quantization-aware.
    When training ends the quantized model is exported: the best checkpoint of the quantized stage where a
    `ModelCheckpoint` has a monitor, else the averaged weights where there are any, else the last ones.

    Scores of the two stages are not comparable, so `EarlyStopping` and `ModelCheckpoint` start over at calibration,
    and an early stop of the float stage goes on to calibration at the next epoch; quantization-aware training has the
    epochs that then remain. A fit that ends before it was calibrated (`max_time`, `max_steps`) is calibrated after
    its last step and exported without quantization-aware training, as every fit with `qat=False` is; it has no
    quantized checkpoint, so test the module itself. Learning rate schedules stay what they are; what quantization-aware
    training takes of them falls to 1 %, see `QAT`.

    `WeightAveraging(use_buffers=False)`, listed after this callback, works: the average is validated and exported
    quantized. So does `StochasticWeightAveraging`, listed anywhere: what is exported are the weights that the fit ends
    with. Strategies that shard parameters are refused.

    What would go wrong later is found before the first step: a package that a format needs, a folder, a `forward_fn`
    that does not fit, a layer that no batch reaches. The trial is one call on a copy of the first batch; it leaves the
    module, its data and all random states as they were.

    A checkpoint of any stage resumes to the same integers: grids are in the module's state dict, random states in the
    checkpoint. Modules that come calibrated are trained on with their grids. `Trainer(fast_dev_run=True)` runs every
    stage on its few batches.

    With `export_dir`, besides the files of `Export`: ``float.ckpt`` (just before calibration), ``ptq.ckpt`` (just
    after), ``qat.ckpt`` (the weights that are exported, after quantization-aware training), weights only; and what
    ``"auto"`` found, see `qgru.search.files`. A folder that can't be written to fails the fit at its start; a write
    that fails later is a warning, and leaves no half file. A resumed run writes the same files byte for byte.
    (Lightning's `CSVLogger` begins another version then, `qgru.report.ResumableCSVLogger` goes on in the same one.)

    Args:
        config: the bit widths: a preset's name, the path of a file, or a mapping; ``"auto"`` finds them at calibration.
        calibrate_at_epoch: the epoch at whose start to calibrate, counted from 0; 0 is before the first step, for
            weights that are trained already. None is after 70 % of the epochs, and leaves one at least.
        calibration_batches: the number of training batches to calibrate on, over all ranks.
        qat: False trains in float up to `calibrate_at_epoch` (None: to the end), calibrates, refines, and ends the fit.
        export_dir: where files go; None writes none.
        export_formats: of ``"qdq"`` and ``"float"``.
        forward_fn: `forward_fn(module, batch)` calls the model on a training batch; by default `module(batch[0])`
            for a tuple or list, else `module(batch)`. `lambda module, batch: module.training_step(batch, 0)` works
            as well, where the optimization is automatic; nothing is logged by it.
        exclude: names of `nn.GRU` layers that stay in float, with wildcards: ``["teacher.*"]``.
        example_inputs, dynamic_axes: for the export of a whole model; see `Export`.
        anneal, qat_learning_rate_scale: learning rates of quantization-aware training; see `QAT`.
        budget, max_error, points: what ``"auto"`` is to find; see `qgru.callbacks.auto.BitWidths`.
        target, logits: the rules of a chip, and of what kind outputs are, where they are compared; see there.

    Raises:
        ValueError, FileNotFoundError: for an argument that is not one of these, naming it (or its operator).
    """

    def __init__(
        self,
        config: str | dict[str, Any] = "int8",
        calibrate_at_epoch: int | None = None,
        calibration_batches: int = 32,
        qat: bool = True,
        export_dir: str | None = None,
        export_formats: Sequence[str] = ("qdq",),
        forward_fn: ForwardFn | None = None,
        exclude: Sequence[str] = (),
        example_inputs: Any = None,
        dynamic_axes: dict[str, list[int]] | None = None,
        anneal: bool = True,
        qat_learning_rate_scale: float = 1.0,
        budget: float | None = None,
        max_error: float | None = None,
        target: str | dict[str, Any] | None = None,
        points: int = 1,
        logits: bool = False,
    ) -> None:
        self.bit_widths = BitWidths(config, budget, max_error, target, points, logits)
        self.config = self.bit_widths.config
        self.calibrate_at_epoch, self.qat = calibrate_at_epoch, qat
        self.export_dir = None if export_dir is None else Path(export_dir)
        self.exclude = check_patterns(exclude)
        self._calibrate = Calibrate(calibrate_at_epoch or 0, calibration_batches, forward_fn)
        self._finalize = Finalize()
        self._qat = QAT(anneal, qat_learning_rate_scale)
        self._export = Export(export_dir or ".", export_formats, forward_fn, example_inputs, dynamic_axes)
        self._conversion: RemovableHandle | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._gate = EarlyStopGate()
        self._resumption = random_state.Resumption()
        self._calibration_epoch = inf
        self._has_trained_quantized = self._has_stale_scores = self._is_finished = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert the module, so that checkpoints of every stage load into it.

        Layers may be built later, in the module's own `setup`; they are converted before a checkpoint is loaded.
        """
        if stage == "fit":
            check_strategy(trainer)
            pl_module.configure_model()
            check_averaging(trainer, self.exclude)
            if any(type(pl_module).setup is kind.setup for kind in classes("LightningModule")):
                check_matches(pl_module, self.exclude)  # else it may build layers later
            if not self.config.disable_quantization and self.export_dir is not None:
                self._export.check(trainer, pl_module)
            self._start_over()
        self._qat.setup(trainer, pl_module, stage)
        self._convert(pl_module)
        self._conversion = pl_module.register_load_state_dict_pre_hook(self._convert)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the bit widths of the layers that are not calibrated."""
        layers = quantized_layers(convert(pl_module, self.exclude))
        self._qat.on_fit_start(trainer, pl_module)
        if not layers:
            floats = "".join(f"; {name} ({why}) stays in float" for name, why in staying_float(pl_module).items())
            raise MisconfigurationException(
                f"{type(pl_module).__name__} holds no nn.GRU to convert; there is nothing to quantize{floats}"
            )
        self.bit_widths.apply(pl_module, layers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is to be done, and plan the float stage, where there is one."""
        self._calibrate.on_train_start(trainer, pl_module)
        self._qat.on_train_start(trainer, pl_module)
        if not self.config.disable_quantization:
            announce(trainer, pl_module)
        if self._is_float(pl_module) and not self.config.disable_quantization:
            self._calibration_epoch = calibration_epoch(trainer, self.calibrate_at_epoch, self.qat)
            if self.qat:
                self._gate.close(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate when it is time, and prepare the layers for an epoch of quantization-aware training."""
        has_to_rewind = self._resumption.before_epoch(trainer)
        if not self.config.disable_quantization:
            if self._is_float(pl_module) and trainer.strategy.broadcast(self._is_due(trainer)):
                if not self.qat:
                    raise StopIteration  # ends the fit, which is calibrated and exported then
                self._quantize(trainer, pl_module)
            if not self._is_float(pl_module):
                self._qat.run(trainer, pl_module)
                share_quantization_state(trainer, pl_module)
                self._has_trained_quantized = True
        if has_to_rewind:
            rewind(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step, try what calibration will do; go on with the random states of a checkpoint."""
        self._resumption.before_batch(trainer)
        self._qat.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.config.disable_quantization or self._calibrate.try_call(trainer, pl_module, batch):
            return
        self.bit_widths.check_outputs(trainer, pl_module, self._calibrate.forward_fn, batch)
        if self.export_dir is not None:
            self._export.warn_without_example(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what was compared with the float stage's last score before there was a quantized one."""
        if self._has_stale_scores and not trainer.sanity_checking:
            reset_monitors(trainer)
            self._has_stale_scores = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; calibrate before that where the fit ended in float."""
        if not averages_later(trainer, self):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish a fit whose weights were averaged as training ended, or that had no step left to train."""
        if not self._is_finished:
            pl_module.to(trainer.strategy.root_device)
            self._finish(trainer, pl_module)
            pl_module.cpu()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind on the trainer's callbacks and the module."""
        self._gate.open()
        self._qat.teardown(trainer, pl_module, stage)
        if self._conversion is not None:
            self._conversion.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no `teardown` then."""
        self.teardown(trainer, pl_module, "fit")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states of all ranks, and what a resumed run has to know of the stages."""
        checkpoint[_STATE] = {
            "random_states": random_state.capture_all_ranks(trainer),
            "stop_requested": self._gate.stop_requested,
            "has_trained_quantized": self._has_trained_quantized,
            "has_stale_scores": self._has_stale_scores,
            "qat": self._qat.state_dict(),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them when a fit is resumed."""
        state = checkpoint.get(_STATE)
        if state is not None and trainer.state.fn == "fit":
            self._resumption.load(trainer, state["random_states"])
            self._gate.stop_requested = state["stop_requested"]
            self._has_trained_quantized = state["has_trained_quantized"]
            self._has_stale_scores = state["has_stale_scores"]
            self._qat.load_state_dict(state.get("qat", {}))

    def _is_due(self, trainer: Trainer) -> bool:
        return trainer.current_epoch >= self._calibration_epoch or (
            self._gate.stop_requested
            and trainer.current_epoch >= (trainer.min_epochs or 0)
            and trainer.global_step >= (trainer.min_steps or 0)
        )

    def _is_float(self, pl_module: LightningModule) -> bool:
        return bool(uncalibrated_layers(pl_module))

    def _quantize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go from the float stage to the quantized one."""
        self._save(trainer, "float.ckpt")
        self._calibrate.run(trainer, pl_module)
        self.bit_widths.find(trainer, pl_module, self._calibrate.forward_fn, self.qat, self.export_dir)
        self._finalize.run(trainer, pl_module)
        if not self.qat:
            refine(trainer, pl_module, self._calibrate.forward_fn, self.bit_widths.logits)
        for layer in quantized_layers(pl_module).values():
            layer.use_quantization = True
        self._save(trainer, "ptq.ckpt")
        self._gate.open()
        reset_monitors(trainer)
        self._has_stale_scores = True

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_finished = True
        if self.config.disable_quantization:
            return
        if self._is_float(pl_module):
            if self._gate.has_diverged:
                rank_zero_warn("qgru: the float stage diverged; nothing was quantized or exported")
                return
            if self.qat:
                rank_zero_warn("qgru: training ended before quantization-aware training; calibrating its last weights")
            self._quantize(trainer, pl_module)
        if self.export_dir is not None:
            with exported_weights(trainer, pl_module) as weights:
                if self._has_trained_quantized:
                    self._save(trainer, "qat.ckpt")
                self._export.run(trainer, pl_module, weights)
            trainer.strategy.barrier("qgru export")

    def _save(self, trainer: Trainer, name: str) -> None:
        if self.export_dir is not None:
            write_weights(trainer, self.export_dir / name)

    def _convert(self, module: LightningModule, *_: Any) -> None:
        """Convert what is there; what a pattern of `exclude` names may be built later."""
        exclude_from_broadcast(convert(module, matching(module, self.exclude)))
