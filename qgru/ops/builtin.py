"""The backends that ship with qgru, the most wanted registered last."""

from qgru.ops.backends import register
from qgru.ops.cpu.backend import Cpu
from qgru.ops.cuda.backend import Cuda
from qgru.ops.reference_backend import Reference

for _backend in (Reference(), Cpu(), Cuda()):
    register(_backend)
