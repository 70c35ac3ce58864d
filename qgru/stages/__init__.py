"""The stages as plain functions of a module and batches: no trainer, and neither Lightning nor ONNX at import."""

from qgru.stages.annealing import anneal
from qgru.stages.calibration import calibrate
from qgru.stages.exporting import export
from qgru.stages.finalization import finalize
from qgru.stages.training import start_qat_epoch

__all__ = ["anneal", "calibrate", "export", "finalize", "start_qat_epoch"]
