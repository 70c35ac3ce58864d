"""What is built from the sources: the wheel's files, and that it works, with a compiler and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "c++", "g++", "clang++"))), None)
pytestmark = pytest.mark.slow
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


def build(what: str, source: Path, folder: Path, **environment: str) -> Path:
    """Build "sdist" or "wheel" where importing torch is an error, as it is in an isolated build."""
    no_torch = folder / "no_torch"
    no_torch.mkdir(exist_ok=True)
    (no_torch / "torch.py").write_text("raise ImportError('a build knows no torch')\n")
    run = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{what}", str(folder)],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(no_torch), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder / run.stdout.splitlines()[-1]


def unpacked(wheel: Path) -> Path:
    site = wheel.with_name(f"{wheel.stem}-site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_on(site: Path, *command: str) -> str:
    run = subprocess.run(
        [sys.executable, *command],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    ignored = (".venv", ".git", "build", "dist", "*.egg-info", "outputs", "multirun", "__pycache__", "*.so")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*ignored))
    with tarfile.open(build("sdist", folder / "tree", folder)) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("qgru-*/"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def files(folder: Path, *suffixes: str) -> set[str]:
    return {
        str(path.relative_to(folder.parent))
        for path in folder.rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_the_source_distribution_has_what_a_checkout_has(source: Path) -> None:
    folders = ("qgru", "conf", "recipes", "tests", "docs", "examples", "benchmarks")
    suffixes = (".py", ".h", ".cpp", ".cu", ".cuh", ".yaml", ".md", ".csv")
    for folder in folders:
        missing = files(ROOT / folder, *suffixes) - files(source / folder, *suffixes)
        assert not {name for name in missing if not name.endswith("README.md")}
    for name in ("train.py", "Makefile", "constraints.txt", "CHANGELOG.md", "LICENSE", "README.md"):
        assert (source / name).is_file()


@needs_compiler
def test_the_wheel_holds_the_package_its_kernels_and_its_configuration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"qgru", "hydra_plugins"}
    want = files(ROOT / "qgru", ".py", ".h", ".cpp", ".cu", ".cuh")
    conf = {f"qgru/{name}" for name in files(ROOT / "conf", ".yaml", ".py") if not name.startswith("conf/recipe/")}
    plugin = {f"hydra_plugins/qgru/{path.name}" for path in (ROOT / "qgru" / "hydra").glob("*.py")}
    c99 = {f"qgru/export/c99/c/{path.name}" for path in (ROOT / "qgru" / "export" / "c99" / "c").iterdir()}
    want |= conf | plugin | c99 | {"qgru/py.typed", "qgru/ops/cpu/_kernels.so"}
    assert {name for name in names if ".dist-info/" not in name} == want
    assert len(conf) > 10 and sum(name.endswith((".cu", ".cuh")) for name in names) > 20


@needs_compiler
def test_one_wheel_serves_every_python_and_torch(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    library = zipfile.ZipFile(wheel).read("qgru/ops/cpu/_kernels.so")
    assert b"qgru_forward" in library
    assert not any(name in library for name in (b"libtorch", b"libpython", b"libgomp", b"PyInit"))


@needs_compiler
def test_an_installed_wheel_has_its_kernels_and_their_integers(wheel: Path) -> None:
    site = unpacked(wheel)
    printed = run_on(site, str(ROOT / "tests" / "packaging" / "installed.py"))
    assert printed.startswith(str(site / "qgru")) and "in use" in printed


def test_without_a_compiler_everything_but_the_kernels_is_built_and_that_is_said(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "build", ignore_errors=True)
    bare = build("wheel", source, tmp_path, CC="false", CXX="false")
    assert bare.name.endswith("-py3-none-any.whl")
    site = unpacked(bare)
    assert (site / "qgru" / "py.typed").is_file() and not list(site.rglob("*.so"))
    printed = run_on(site, "-m", "qgru.env")
    assert "they were not built, for there was no C++20 compiler when qgru was installed" in printed
