"""When to refine grids: right after they were made, where no quantization-aware training follows."""

from __future__ import annotations

from functools import partial

from qgru.callbacks.agreement import failing_together
from qgru.callbacks.batches import first_batches
from qgru.callbacks.calling import outputs_in_float
from qgru.callbacks.packages import LightningModule, Trainer, rank_zero_info, rank_zero_warn
from qgru.callbacks.progress import reporting
from qgru.callbacks.ranks import share_rank_zeros_state
from qgru.search.refine import Move, refine_exponents
from qgru.stages.passes import ForwardFn


def refine(
    trainer: Trainer, pl_module: LightningModule, forward_fn: ForwardFn | None = None, logits: bool = False
) -> None:
    """Refine the grids by the outputs on a few calibration batches; a collective call.

    Rank zero refines, and all ranks get its grids. A model whose outputs can't be compared keeps its grids, with a
    warning: it must not cost the training.

    Args:
        trainer: gives the batches.
        pl_module: its layers are calibrated.
        forward_fn: as calibration's; compared is what `outputs_in_float` returns.
        logits: the outputs are logits.
    """
    with failing_together():
        if trainer.is_global_zero:
            batches = first_batches(trainer, pl_module)
            call = partial(outputs_in_float, trainer, forward_fn)
            try:
                with reporting(trainer, "refining grids") as progress:
                    moves = refine_exponents(pl_module, batches, call, logits, progress)
                rank_zero_info(f"qgru: {_in_words(moves, len(batches))}")
            except ValueError as error:
                rank_zero_warn(f"qgru: the grids stay as calibrated, and were not refined: {error}")
    share_rank_zeros_state(trainer, pl_module)


def _in_words(moves: list[Move], batches: int) -> str:
    if not moves:
        return f"refined: no exponent moved brings the outputs closer to float's on {batches} training batches"
    return (
        f"refined on {batches} training batches: output error {moves[0].before:.3g} -> {moves[-1].after:.3g}; "
        f"{', '.join(map(str, moves))}"
    )
