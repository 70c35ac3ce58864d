"""Every private name of torch's that qgru needs is there, and stands in one module."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import qgru
from qgru import torch_private
from qgru.torch_private import SYMBOLS, Symbol

PACKAGE = Path(qgru.__file__).parent
PRIVATE = re.compile(r"(?:from|import) torch[\w.]*\._|from torch[\w.]* import .*\b_\w|\btorch(?:\.\w+)*\._(?!_)")
"""``from torch._x import``, ``from torch.x import _y``, ``torch.x._y``."""


@pytest.mark.parametrize("name", SYMBOLS)
def test_it_is_there(name):
    assert getattr(torch_private, name) is SYMBOLS[name].find()


@pytest.mark.parametrize("symbol", SYMBOLS.values(), ids=SYMBOLS)
def test_its_user_names_it(symbol):
    module = symbol.user if (PACKAGE.parent / f"{symbol.user.replace('.', '/')}.py").exists() else "qgru.torch_private"
    source = Path(import_module(module).__file__).read_text()
    assert symbol.name.rpartition(".")[2].lstrip("_") in source


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


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        _ = torch_private.anything


def test_no_other_module_uses_private_names():
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in (PACKAGE / "export").rglob("*.py")
        for line in path.read_text().splitlines()
        if PRIVATE.search(line)
    }
    assert not found
