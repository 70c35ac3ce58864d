"""Packaging of qgru. `conf/` stays at the top of the repository and is installed as `qgru.conf`.

The recipes are a checkout's, as train.py is: their code is not installed, and so neither is `conf/recipe`.
"""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CPU = "qgru/ops/cpu"
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
QUIET = ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-g0"]  # GCC warns of its own AVX-512 header


class BuildKernels(build_ext):
    """A shared library of C functions: no Python is part of its name, or has to be able to import it."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', os.sep)}.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols


class Wheel(bdist_wheel):
    """One wheel for every Python of a platform; without kernels, for every platform too."""

    def get_tag(self) -> tuple[str, str, str]:
        has_kernels = any(Path(self.bdist_dir).rglob("_kernels.so"))
        return "py3", "none", super().get_tag()[2] if has_kernels else "any"


def config_packages() -> dict[str, str]:
    """Map every folder of `conf/` to the package it is installed as."""
    folders = [path.parent for path in (ROOT / "conf").rglob("__init__.py")]
    relative = sorted(folder.relative_to(ROOT) for folder in folders)
    return {".".join(("qgru", *folder.parts)): str(folder) for folder in relative if folder.name != "recipe"}


def kernels() -> Extension:
    """Return the CPU kernels, which need a C++20 compiler alone; where there is none they are left out."""
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if "QGRU_SANITIZE" in os.environ else []
    return Extension(
        "qgru.ops.cpu._kernels",
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / CPU).glob("*.cpp")),
        extra_compile_args=[*FLAGS, *QUIET, *sanitize],
        extra_link_args=sanitize,
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / CPU).glob("*.h")),
        language="c++",
        optional=True,
    )


CONF = config_packages()
SOURCES = {
    "qgru": ["py.typed"],
    "qgru.ops.cuda": ["kernels/*.cu", "kernels/*.cuh"],
    "qgru.ops.cpu": ["*.h", "*.cpp"],
    "qgru.calibration": ["kernels/*.cu"],
    "qgru.export.c99": ["c/*"],
}

setup(
    packages=["hydra_plugins.qgru", *find_packages(include=["qgru", "qgru.*"]), *CONF],
    package_dir={"qgru": "qgru", "hydra_plugins.qgru": "qgru/hydra", **CONF},
    package_data={**SOURCES, **{name: ["*.yaml"] for name in CONF}},
    ext_modules=[kernels()],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
