"""Lightning callbacks: the stages, each usable alone, and the lifecycle that runs them."""

from qgru.callbacks.calibrate import Calibrate
from qgru.callbacks.export import Export
from qgru.callbacks.finalize import Finalize
from qgru.callbacks.lifecycle import QuantizationLifecycle
from qgru.callbacks.qat import QAT
from qgru.entry_points import tell_hydra

__all__ = ["QAT", "Calibrate", "Export", "Finalize", "QuantizationLifecycle"]

tell_hydra()  # who imports qgru before Hydra comes here after it
