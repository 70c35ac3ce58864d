"""The conformance suite over every backend: registered ones, the CPU's paths, and folders beside this file.

A backend that is to be tested without being registered is a package in this folder with a `BACKEND`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

from qgru.ops import backends, builtin  # noqa: F401  (registers the backends)
from qgru.ops.cpu import backend as cpu
from tests.ops.conformance import CHECKS, Subject

FOLDERS = [name for _, name, is_package in pkgutil.iter_modules([str(Path(__file__).parent)]) if is_package]
CPU_WAYS = {f"cpu {path} {kind}": (path, kind) for path in cpu.PATHS for kind in ("fast", "exact")}
DEVICES = [("reference", "cpu"), ("reference", "cuda"), ("cuda", "cuda")]
SUBJECTS = [*(f"{name} on {device}" for name, device in DEVICES), *CPU_WAYS, *FOLDERS]


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Every backend on its device; the CPU's kernels on each path, with "exact" in int64 where float32 serves, too."""
    name: str = request.param
    with ExitStack() as stack:
        if name in FOLDERS:
            yield Subject(import_module(f"tests.ops.{name}").BACKEND, "cpu")
            return
        backend, device = ("cpu", "cpu") if name in CPU_WAYS else name.split(" on ")
        known = backends.named(backend)
        if known.why_unavailable():
            pytest.skip(f"{backend}: {known.why_unavailable()}")
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no GPU here")
        if name in CPU_WAYS:
            path, kind = CPU_WAYS[name]
            if path not in cpu.paths():
                pytest.skip(f"this machine has no {path}")
            stack.enter_context(mock.patch.object(cpu, "path", lambda: cpu.PATHS.index(path)))
            if kind == "exact":
                stack.enter_context(mock.patch.object(cpu, "_is_fast", lambda call: False))
        yield Subject(known, device)


def test_every_registered_backend_is_a_subject() -> None:
    tested = {name.split()[0] for name in SUBJECTS}
    assert {backend.name for backend in backends.registered()} <= tested and "toy" in tested


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(subject: Subject, check: Callable[[Subject, Path], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(subject, tmp_path)
