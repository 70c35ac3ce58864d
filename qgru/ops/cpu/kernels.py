"""The kernels' library and the structures that its C functions take, field by field as layer.h declares them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_int, c_int64, c_uint64, c_void_p
from functools import cached_property
from pathlib import Path

import torch

from qgru.torch_private import C


class Grid(Structure):
    """Mantissas ``lo .. hi``, each worth ``2**-exponent``."""

    _fields_ = [("lo", c_int64), ("hi", c_int64), ("exponent", c_int)]


class Forward(Structure):
    """One layer and direction of the forward pass."""

    _fields_ = [
        ("time", c_int64),
        ("batch", c_int64),
        ("input", c_int64),
        ("hidden", c_int64),
        ("reverse", c_bool),
        ("parts", c_int),
        ("on", Grid * 14),
        ("weights", Grid * 4),
        ("exponents", c_void_p),
        ("x", c_void_p),
        ("h0", c_void_p),
        ("parameters", c_void_p * 4),
        ("active", c_void_p),
        ("integers", c_void_p * 3),
        ("values", c_void_p * 3),
        ("slopes", c_void_p * 3),
        ("states", c_void_p),
        ("row", c_int64),
        ("last", c_void_p),
        ("factors", c_void_p),
        ("passed", c_void_p),
        ("lost", c_void_p),
        ("prepared", c_void_p),
        ("parallel_for", c_void_p),
    ]


class Backward(Structure):
    """One layer and direction of the backward pass."""

    _fields_ = [
        ("time", c_int64),
        ("batch", c_int64),
        ("hidden", c_int64),
        ("reverse", c_bool),
        ("parts", c_int),
        ("d_states", c_void_p),
        ("row", c_int64),
        ("d_last", c_void_p),
        ("R", c_void_p),
        ("factors", c_void_p),
        ("passed", c_void_p),
        ("dWx", c_void_p),
        ("dRh", c_void_p),
        ("dh", c_void_p),
        ("biases", c_void_p),
        ("parallel_for", c_void_p),
    ]


class Region(Structure):
    """Memory, and what was in it."""

    _fields_ = [("data", c_void_p), ("bytes", c_int64), ("digest", c_uint64)]


class Steps(Structure):
    """A stack of layers on prepared weights, for one time step a call."""

    _fields_ = [
        ("layers", c_int64),
        ("path", c_int64),
        ("of_layers", POINTER(Forward)),
        ("exact", POINTER(c_bool)),
        ("always", c_int64),
        ("others", c_int64),
        ("window", c_int64),
        ("turn", c_int64),
        ("of_regions", POINTER(Region)),
        ("parallel_for", c_void_p),
    ]


class Kernels:
    """The library of interface.cpp, on torch's own threads. Calls hold no GIL.

    Args:
        file: the library.

    Raises:
        OSError: where it can't be loaded.
        AttributeError: where torch has no `torch_parallel_for`, which 2.10 and later have.
        ImportError: where it was built from other sources than these.
    """

    def __init__(self, file: Path) -> None:
        library = ctypes.CDLL(str(file))
        own = tuple(map(ctypes.sizeof, (Forward, Backward, Steps)))
        if tuple((c_int64 * len(own)).in_dll(library, "qgru_sizes")) != own:
            raise ImportError(f"{file} was built from other sources")
        self._paths = library.qgru_paths
        self._paths.restype = c_int64
        self._forward, self._backward = library.qgru_forward, library.qgru_backward
        self._forward.argtypes, self._forward.restype = (POINTER(Forward), c_int64, c_bool), c_char_p
        self._backward.argtypes, self._backward.restype = (POINTER(Backward), c_int64), c_char_p
        self._prepare, self._release = library.qgru_prepare, library.qgru_release
        self._prepare.argtypes, self._prepare.restype = (POINTER(Forward), c_int64, c_bool, c_void_p), c_char_p
        self._release.argtypes, self._release.restype = (c_void_p,), None
        self._digest, self._step = library.qgru_digest, library.qgru_step
        self._digest.argtypes, self._digest.restype = (c_void_p, c_int64, c_int64), c_uint64
        self._step.argtypes, self._step.restype = (POINTER(Steps), c_int64, c_int, *[c_void_p] * 4), c_int
        parallel_for = ctypes.CDLL(C.__file__).torch_parallel_for
        self._parallel_for = ctypes.cast(parallel_for, c_void_p).value

    @cached_property
    def paths(self) -> int:
        """How many of plain, avx2 and avx512 this machine runs."""
        return self._paths()

    def forward(self, call: Forward, path: int, exact: bool) -> None:
        """Run a direction of a layer.

        Args:
            call: all but `parallel_for` filled in, with the addresses of tensors that the caller keeps.
            path: one of those that this machine runs.
            exact: in int64, on float64 reals.

        Raises:
            RuntimeError: where memory runs out.
        """
        self._run(self._forward, call, path, exact)

    def prepare(self, call: Forward, path: int, exact: bool) -> int:
        """Return the address of a layer's weights as a path reads them; see `forward`.

        Args:
            call: with sizes, grids, exponents and parameters.
            path: as `forward`.
            exact: as `forward`.
        """
        made = c_void_p()
        self._run(self._prepare, call, path, exact, byref(made))
        return made.value

    def release(self, prepared: int) -> None:
        """Free what `prepare` made."""
        self._release(prepared)

    def digest(self, data: int, size: int, path: int) -> int:
        """Return a number that tells what `size` bytes hold, as long as the process lives."""
        return self._digest(data, size, path)

    def adopt(self, steps: Steps) -> None:
        """Have `steps` run on torch's threads."""
        steps.parallel_for = self._parallel_for

    def step(self, steps: Steps, batch: int, x: int, h0: int | None, y: int, last: int) -> bool:
        """Run one time step; returns False, and runs nothing, where the weights or grids have changed.

        Args:
            steps: the layers, adopted.
            batch: rows.
            x: address of (batch, input) float32.
            h0: of (layers, batch, hidden); None for zeros.
            y: of the last layer's states (batch, hidden), to be written.
            last: of the last states (layers, batch, hidden), to be written.

        Raises:
            RuntimeError: where memory runs out.
        """
        result = self._step(steps, batch, parts_of(batch), x, h0, y, last)
        if result == 2:
            raise RuntimeError("the cpu kernels: out of memory")
        return result == 0

    def backward(self, call: Backward, path: int) -> None:
        """Run a direction of a layer back over time; see `forward`."""
        self._run(self._backward, call, path)

    def _run(self, function: Callable[..., bytes | None], call: Forward | Backward, *how: int) -> None:
        call.parallel_for = self._parallel_for
        problem = function(call, *how)
        if problem is not None:
            raise RuntimeError(f"the cpu kernels: {problem.decode()}")


def parts_of(batch: int) -> int:
    """Return into how many parts a batch is cut: one for each of torch's threads."""
    return min(torch.get_num_threads(), batch)
