"""Packaging of qgru. `conf/` stays at the top of the repository and is installed as `qgru.conf`."""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
CPU = "qgru/ops/cpu"
TORCH_ABI = "0x020a000000000000"  # 2.10, and PYTHON_ABI is 3.10: the oldest that the binary serves
PYTHON_ABI = "0x030a0000"
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-g0"]


def config_packages() -> dict[str, str]:
    """Map every folder of `conf/` to the package it is installed as."""
    folders = [path.parent for path in (ROOT / "conf").rglob("__init__.py")]
    relative = sorted(folder.relative_to(ROOT) for folder in folders)
    return {".".join(("qgru", *folder.parts)): str(folder) for folder in relative}


def extensions() -> list[Extension]:
    """Return the CPU kernels, where torch is there to build against; without a compiler they are left out as well."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:
        return []
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if "QGRU_SANITIZE" in os.environ else []
    kernels = Extension(
        "qgru.ops.cpu._kernels",
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / CPU).glob("*.cpp")),
        include_dirs=include_paths(),
        library_dirs=library_paths(),
        libraries=["torch_cpu"],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_ABI), ("Py_LIMITED_API", PYTHON_ABI)],
        extra_compile_args=[*FLAGS, *sanitize],
        extra_link_args=sanitize,
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / CPU).glob("*.h")),
        py_limited_api=True,
        optional=True,
    )
    return [kernels]


CONF = config_packages()
RECIPES = find_packages(include=["recipes", "recipes.*"])
SOURCES = {
    "qgru.ops.cuda": ["kernels/*.cu", "kernels/*.cuh"],
    "qgru.ops.cpu": ["*.h", "*.cpp"],
    "qgru.calibration": ["kernels/*.cu"],
}

setup(
    packages=["hydra_plugins.qgru", *find_packages(include=["qgru", "qgru.*"]), *CONF, *RECIPES],
    package_dir={"qgru": "qgru", "hydra_plugins.qgru": "qgru/hydra", **CONF},
    package_data={**SOURCES, **{name: ["*.yaml"] for name in CONF}},
    ext_modules=extensions(),
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
