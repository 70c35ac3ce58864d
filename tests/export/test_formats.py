"""One table of formats; the layer knows the table and none of the exports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import qgru
from qgru import QuantGRU
from qgru.export import export_layers, export_onnx, formats
from qgru.export.formats import Format

PACKAGE = Path(qgru.__file__).parent


@pytest.fixture
def toy(monkeypatch) -> Format:
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    formats.register(Format("toy", ".txt", "tests.export.toy"))
    return formats.find("toy")


def test_a_format_is_a_folder_and_a_line(toy, tmp_path):
    model = nn.Sequential(QuantGRU(3, 5), nn.Identity(), QuantGRU(5, 5))
    report = toy.export_model(model, torch.randn(4, 2, 3), tmp_path / f"model_toy{toy.suffix}")
    assert (report.path.read_text(), report.format) == ("0\n2", "toy")
    reports = export_layers(model, tmp_path / "layers", "toy", text="a layer")
    assert {name: report.path for name, report in reports.items()} == {
        "0": tmp_path / "layers" / "0.txt",
        "2": tmp_path / "layers" / "2.txt",
    }
    assert all(report.path.read_text() == "a layer" for report in reports.values())


def test_what_is_not_traced_is_no_export_format(toy, tmp_path):
    gru = QuantGRU(3, 5)
    with pytest.raises(ValueError, match="^export_format is 'toy'; expected one of float, qdq$"):
        gru.export_format = "toy"
    with pytest.raises(ValueError, match="^format is 'toy'; expected one of float, qdq$"):
        export_onnx(gru, torch.randn(4, 2, 3), tmp_path / "gru.onnx", "toy")
    assert gru.export_format == "qdq"


def test_names_are_taken_once(toy):
    with pytest.raises(ValueError, match=r"'toy' is registered already, in tests\.export\.toy"):
        formats.register(toy)


@pytest.mark.parametrize("name", ("tflite", None, ["qdq"], "q" * 1000))
def test_unknown_formats(name, tmp_path):
    known = ", ".join(formats.FORMATS)
    with pytest.raises(ValueError, match=rf"^format is .{{4,120}}; expected one of {known}$"):
        export_layers(QuantGRU(3, 5), tmp_path / "layers", name)
    assert list(tmp_path.iterdir()) == []


def test_the_table_imports_nothing_that_is_costly():
    code = (
        "import sys, qgru.export.formats\nprint([n for n in ('onnx', 'onnxruntime', 'lightning') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_layer_imports_no_export():
    """Not even inside of a function: what `qgru.gru` leads to is the table of formats, which leads nowhere."""
    reached, pending = set(), ["qgru.gru"]
    while pending:
        module = pending.pop()
        if module not in reached:
            reached.add(module)
            pending.extend(imports(module))
    assert {module for module in reached if module.startswith("qgru.export.")} == {"qgru.export.formats"}


def imports(module: str) -> Iterator[str]:
    """The modules of qgru that a module imports at any time, those for type annotations left out."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text())
    annotations = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("qgru."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "qgru":
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                if node.module != "qgru" or is_module:
                    yield f"{node.module}.{alias.name}" if is_module else node.module
