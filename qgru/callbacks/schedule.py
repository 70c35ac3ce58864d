"""At which epoch to calibrate."""

from __future__ import annotations

from math import ceil, inf

from qgru.callbacks.packages import MisconfigurationException, Trainer, rank_zero_warn


def calibration_epoch(trainer: Trainer, calibrate_at_epoch: int | None, qat: bool) -> float:
    """Return the epoch at whose start to calibrate; infinity is after the last one.

    Warns where that leaves nothing to train in float, or quantized, though it was asked for.

    Args:
        trainer: about to train.
        calibrate_at_epoch: as given; None for after 70 % of the epochs.
        qat: False calibrates after the last epoch unless an earlier one is given.

    Raises:
        MisconfigurationException: where None is given and the trainer does not say how many epochs there are.
    """
    if trainer.fast_dev_run:
        return 0 if qat else inf
    if not qat:
        return inf if calibrate_at_epoch is None else calibrate_at_epoch
    epochs = _planned_epochs(trainer)
    if calibrate_at_epoch is not None:
        if calibrate_at_epoch >= epochs:
            rank_zero_warn(
                f"qgru: calibrate_at_epoch={calibrate_at_epoch} never comes: {_limits(trainer)} ends the fit before, "
                f"which is calibrated then, without quantization-aware training; expected less than {epochs}"
            )
        return calibrate_at_epoch
    if epochs == inf:
        raise MisconfigurationException(
            f"calibrate_at_epoch=None is after 70 % of the epochs, and {_limits(trainer)} does not say how many there "
            "are; expected a number for calibrate_at_epoch"
        )
    if epochs == 1:
        rank_zero_warn(
            f"qgru: {_limits(trainer)} leaves no epoch to train in float: calibrate_at_epoch=None is 0 then, and the "
            "weights are calibrated untrained, as they are before the first step; expected 2 epochs or more, or "
            "calibrate_at_epoch=0 for weights that are trained already"
        )
    return min(round(0.7 * epochs), epochs - 1)


def _limits(trainer: Trainer) -> str:
    steps = "" if trainer.max_steps == -1 else f", max_steps={trainer.max_steps}"
    return f"max_epochs={trainer.max_epochs}{steps}"


def _planned_epochs(trainer: Trainer) -> float:
    """Return how many epochs `max_epochs` and `max_steps` allow."""
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else inf
    if trainer.max_steps == -1 or trainer.num_training_batches in (0, inf):
        return epochs
    steps_per_epoch = ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return min(epochs, ceil(trainer.max_steps / steps_per_epoch))
