"""Every private name of torch's that qgru needs is there, and stands in one module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import qgru
from qgru import torch_private
from qgru.torch_private import SYMBOLS, Symbol

PACKAGE = Path(qgru.__file__).parent
OWN = Path(torch_private.__file__)
PRIVATE = re.compile(r"(?:from|import) torch[\w.]*\._|from torch[\w.]* import .*\b_\w|\btorch(?:\.\w+)*\._(?!_)")
"""``from torch._x import``, ``from torch.x import _y``, ``torch.x._y``."""


@pytest.mark.parametrize("name", SYMBOLS)
def test_it_is_there(name):
    if name.startswith("cuda") and torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    assert getattr(torch_private, name) is SYMBOLS[name].find()


@pytest.mark.parametrize(("name", "symbol"), SYMBOLS.items())
def test_it_is_used(name, symbol):
    """By the module that the table names, or by a function beside the table."""
    user = PACKAGE.parent.joinpath(*symbol.user.split("."))
    source = user.with_suffix(".py").read_text() if user.with_suffix(".py").exists() else ""
    functions = OWN.read_text().rpartition("def __getattr__")[2]
    assert re.search(rf"\b_?{name}\b", source + functions)


@pytest.mark.parametrize(
    "symbol",
    (
        Symbol("torch._no_such_module", "anything", "qgru.export.x", "do it"),
        Symbol("torch._C", "_no_such_name", "qgru.export.x", "do it"),
        Symbol("torch", "ops.onnx_symbolic._symbolic", "qgru.export.x", "do it", "torch._no_such_module"),
    ),
)
def test_what_is_gone_is_named_with_who_needs_it(symbol):
    message = (
        rf"^torch {re.escape(torch.__version__)} has no {symbol.home}.{symbol.name}; qgru.export.x needs it to do it$"
    )
    with pytest.raises(ImportError, match=message):
        symbol.find()


def test_tensors_behind_fake_ones():
    real, other = torch.zeros(3), torch.zeros(3)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (real, other)]
        found = torch_private.tensors_behind([fakes[1], torch.empty(3), fakes[0]])
    assert found[0] is other and found[1] is None and found[2] is real


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        _ = torch_private.anything


def test_no_other_module_uses_private_names():
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if path != OWN and PRIVATE.search(line)
    }
    assert not found
