"""Kernels from CUDA C++ at first use: NVRTC through `cuda-core`, cached on disk and in memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "kernels"
FILES = {
    "empty": ("empty.cu",),
    "prepare": ("common.cuh", "stored.cuh", "prepare.cu"),
    "project": ("common.cuh", "project.cu"),
    "forward": ("common.cuh", "cell.cuh", "loop.cuh", "product.cuh", "forward.cu"),
    "factors": ("common.cuh", "cell.cuh", "chunk.cuh", "factors.cuh", "factors.cu"),
    "walk": ("common.cuh", "chunk.cuh", "walk.cuh", "reverse.cuh", "walk.cu"),
    "pieces": ("common.cuh", "cell.cuh", "chunk.cuh", "factors.cuh", "pieces.cu"),
    "parameters": ("common.cuh", "parameters.cu"),
    "count": ("count.cu",),
    "input_weights": ("common.cuh", "stored.cuh", "input.cu"),
    "input_gradient": ("common.cuh", "stored.cuh", "input.cu"),
}
Macros = tuple[tuple[str, int], ...]


def source(name: str) -> str:
    """Return the whole source of the kernel `name`."""
    return "\n".join((SOURCES / file).read_text() for file in FILES[name])


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
def cubin(name: str, macros: Macros, arch: str) -> bytes:
    """Return the machine code of the kernel `name`, from the disk where an earlier process left it.

    Args:
        name: one of `FILES`.
        macros: names and values to compile with.
        arch: such as ``"sm_90"``.
    """
    from cuda.bindings import nvrtc
    from cuda.core import Program, ProgramOptions

    text, version = source(name), nvrtc.nvrtcVersion()[1:]
    key = hashlib.sha256(repr((text, macros, arch, version)).encode()).hexdigest()
    cached = _cache_folder() / f"{name}-{key[:32]}.cubin"
    if cached.is_file():
        return cached.read_bytes()
    defined = [(macro, str(value)) for macro, value in macros] or None
    options = ProgramOptions(std="c++17", arch=arch, define_macro=defined)
    code = bytes(Program(text, "c++", options=options).compile("cubin").code)
    _write(cached, code)
    return code


def compile_together(kernels: Iterable[tuple[str, Macros]], arch: str) -> None:
    """Compile several kernels at once: the compiler does not hold Python's lock."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kernel: cubin(*kernel, arch), kernels))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qgru" / "cuda"


def _write(path: Path, content: bytes) -> None:
    """Write in one step, so that no other process reads half; a folder that can't be written costs a compilation."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError:
        pass


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
        self._kept = ctypes.create_string_buffer(size + 8)  # the struct may end in padding
        self.buffer = ctypes.addressof(self._kept)
        self._array = (ctypes.c_void_p * 1)(self.buffer)
        self.pointers = ctypes.addressof(self._array)


class Kernel:
    """A kernel on one device, ready to launch.

    Args:
        name: one of `FILES`.
        macros: names and values to compile with.
        device: index of the CUDA device, current.
        capability: its compute capability.
        shared_bytes: dynamic shared memory of a CTA.
        cluster: CTAs of a cluster.
        threads: threads of a CTA.
    """

    def __init__(
        self,
        name: str,
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
        self._module = ObjectCode.from_cubin(cubin(name, macros, arch_of(capability)))
        kernel = self._module.get_kernel(name).handle
        attributes = driver.CUfunction_attribute
        self._set(kernel, attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes, device)
        if cluster > 8:
            self._set(kernel, attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, device)
        self._function = driver.CUfunction(int(kernel))
        self._place = _Place(driver, threads, shared_bytes, cluster)
        self._check(driver.cuKernelGetFunction(kernel)[0])  # loads it: the first launch does nothing but launch

    def __call__(self, stream: int, grid: tuple[int, int], arguments: bytes) -> None:
        """Launch on a stream; `arguments` is the kernel's one struct."""
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
