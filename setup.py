"""Packaging of qgru. `conf/` stays at the top of the repository and is installed as `qgru.conf`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def config_packages() -> dict[str, str]:
    """Map every folder of `conf/` to the package it is installed as."""
    folders = [path.parent for path in (ROOT / "conf").rglob("__init__.py")]
    relative = sorted(folder.relative_to(ROOT) for folder in folders)
    return {".".join(("qgru", *folder.parts)): str(folder) for folder in relative}


CONF = config_packages()
RECIPES = find_packages(include=["recipes", "recipes.*"])

setup(
    packages=["hydra_plugins.qgru", *find_packages(include=["qgru", "qgru.*"]), *CONF, *RECIPES],
    package_dir={"qgru": "qgru", "hydra_plugins.qgru": "qgru/hydra", **CONF},
    package_data={"qgru.ops.cuda": ["kernels/*.cu", "kernels/*.cuh"], **{name: ["*.yaml"] for name in CONF}},
)
