"""Kernels from CUDA C++ at first use: NVRTC through `cuda-core`, cached on disk and in memory."""

from __future__ import annotations

import ctypes
import hashlib
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from qgru.ops.cuda import cache
from qgru.ops.cuda.macros import Macros, Source

_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)


def sources(path: Path) -> dict[str, str]:
    """Return a file's text, and that of every file beside it that it includes, by name."""
    texts, waiting = {}, [path.name]
    while waiting:
        name = waiting.pop()
        texts[name] = path.with_name(name).read_text(encoding="utf-8")
        waiting += [included for included in _INCLUDE.findall(texts[name]) if included not in texts]
    return texts


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Return True where `cuda-core` and NVRTC can be used."""
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program  # noqa: F401

        return int(nvrtc.nvrtcVersion()[0]) == 0
    except (ImportError, RuntimeError, OSError):
        return False


@lru_cache(maxsize=256)
def cubin(source: Source, macros: Macros, arch: str) -> bytes:
    """Return a kernel's machine code, from the disk where an earlier process left it.

    Args:
        source: the kernel.
        macros: values of all its macros, once each.
        arch: such as ``"sm_90"``.

    Raises:
        ValueError: naming the kernel, where `macros` are not its macros.
    """
    from cuda.bindings import nvrtc

    if sorted(name for name, _ in macros) != sorted(source.macros):
        raise ValueError(
            f"kernel {source.name!r}: got the macros {macros}; expected a value for each of {source.macros}"
        )
    texts, version = sorted(sources(source.path).items()), nvrtc.nvrtcVersion()[1:]
    key = repr((texts, sorted(macros), arch, version))
    name = f"{source.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.cubin"
    code = cache.read(name, key)
    if code is None:
        code = compiled(source.path.read_text(encoding="utf-8"), source.path.parent, macros, arch)
        cache.write(name, key, code)
    return code


def compiled(text: str, folder: Path, macros: Macros, arch: str, log: TextIO | None = None) -> bytes:
    """Compile.

    Args:
        text: CUDA C++.
        folder: where it finds what it includes.
        macros: names and values.
        arch: such as ``"sm_90"``.
        log: where to write the compiler's warnings.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        std="c++17",
        arch=arch,
        define_macro=[(name, str(value)) for name, value in macros] or None,
        include_path=[str(folder)],
        no_source_include=True,  # not from the folder that Python runs in
    )
    return bytes(Program(text, "c++", options=options).compile("cubin", logs=log).code)


def compile_together(kernels: Iterable[tuple[Source, Macros]], arch: str) -> None:
    """Compile several kernels at once: the compiler does not hold Python's lock."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kernel: cubin(*kernel, arch), kernels))


_thread = threading.local()


def ensure_context(device: int) -> None:
    """Make the device's context current in a thread that has none yet, as autograd's threads do at first."""
    if getattr(_thread, "has_context", False):
        return
    from cuda.bindings import driver
    from cuda.core import Device

    if not int(driver.cuCtxGetCurrent()[1]):
        Device(device).set_current()
    _thread.has_context = True


def arch_of(capability: tuple[int, int]) -> str:
    """Return the compiler's name of a compute capability."""
    return "sm_{}{}".format(*capability)


class _Place(threading.local):
    """What a launch fills in: of every thread its own, for the driver reads it without Python's lock."""

    def __init__(self, driver: Any, threads: int, shared_bytes: int, cluster: int) -> None:
        self.config = driver.CUlaunchConfig()
        self.config.blockDimX, self.config.blockDimY, self.config.blockDimZ = threads, 1, 1
        self.config.gridDimZ = 1
        self.config.sharedMemBytes = shared_bytes
        self.config.numAttrs = 0
        if cluster > 1:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = attribute.value.clusterDim
            size.x, size.y, size.z = cluster, 1, 1
            self.config.attrs, self.config.numAttrs = [attribute], 1
        self.grid: tuple[int, int] | None = None
        self.stream: int | None = None
        self.pointers = 0

    def make_room(self, size: int) -> None:
        """Make the buffer that a kernel's arguments are copied to, and the array that points at it."""
        self._kept = ctypes.create_string_buffer(size)
        self.buffer = ctypes.addressof(self._kept)
        self._array = (ctypes.c_void_p * 1)(self.buffer)
        self.pointers = ctypes.addressof(self._array)


class Kernel:
    """A kernel on one device, ready to launch.

    Args:
        source: the kernel's.
        macros: values of all its macros.
        device: index of the CUDA device, current.
        capability: its compute capability.
        shared_bytes: dynamic shared memory of a CTA.
        cluster: CTAs of a cluster.
        threads: threads of a CTA.
    """

    def __init__(
        self,
        source: Source,
        macros: Macros,
        device: int,
        capability: tuple[int, int],
        threads: int,
        shared_bytes: int = 0,
        cluster: int = 1,
    ) -> None:
        from cuda.bindings import driver
        from cuda.core import ObjectCode

        self._driver, self._cluster = driver, cluster
        self._module = ObjectCode.from_cubin(cubin(source, macros, arch_of(capability)))
        kernel = self._module.get_kernel(source.name).handle
        attributes = driver.CUfunction_attribute
        self._set(kernel, attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes, device)
        if cluster > 8:
            self._set(kernel, attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, device)
        self._function = driver.CUfunction(int(kernel))
        self._place = _Place(driver, threads, shared_bytes, cluster)
        self._check(driver.cuKernelGetFunction(kernel)[0])  # loads it: the first launch does nothing but launch

    def __call__(self, stream: int, grid: tuple[int, int], arguments: bytes) -> None:
        """Launch on a stream; `arguments` is the kernel's one struct, see structs.py."""
        place = self._place
        config = place.config
        if place.grid != grid:
            config.gridDimX, config.gridDimY = place.grid = grid
        if place.stream != stream:
            config.hStream = place.stream = stream
        if not place.pointers:
            place.make_room(len(arguments))
        ctypes.memmove(place.buffer, arguments, len(arguments))
        self._check(self._driver.cuLaunchKernelEx(config, self._function, place.pointers, 0)[0])

    def clusters_at_once(self) -> int:
        """Return how many clusters the device runs at once."""
        config = self._place.config
        config.gridDimX, config.gridDimY = self._cluster, 1
        status, count = self._driver.cuOccupancyMaxActiveClusters(self._function, config)
        self._check(status)
        return int(count)

    def _set(self, kernel: object, attribute: object, value: int, device: int) -> None:
        self._check(self._driver.cuKernelSetAttribute(attribute, value, kernel, device)[0])

    def _check(self, status: object) -> None:
        if int(status) != 0:
            raise RuntimeError(f"CUDA: {status.name}")
