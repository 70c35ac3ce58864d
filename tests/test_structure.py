"""Arrows between modules point down only; those of type annotations may point anywhere."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import qgru

PACKAGE = Path(qgru.__file__).parent


def modules() -> dict[str, Path]:
    """All but `qgru.export`, which the layer finds by a format's name."""
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in paths.items() if not name.startswith("qgru.export")}


class _WithoutAnnotations(ast.NodeTransformer):
    """Drops what stands under `if TYPE_CHECKING`."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules that a file imports from, wherever in it that stands."""
    found = set()
    for node in ast.walk(_WithoutAnnotations().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_there_is_no_circle() -> None:
    known = modules()
    graph = {name: imported(path, set(known)) for name, path in known.items()}
    assert "qgru.layer" in graph["qgru.gru"] and "qgru.state" in graph["qgru.buffers"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_layer_knows_neither_lightning_nor_what_is_above_it() -> None:
    known = modules()
    below, seen = ["qgru.gru"], set()
    while below:
        name = below.pop()
        seen.add(name)
        below += imported(known[name], set(known)) - seen
    above = ("callbacks", "report", "hydra", "convert", "stages")
    assert not [name for name in seen if name.split(".")[1] in above]
    assert not [name for name in seen if "lightning" in known[name].read_text(encoding="utf-8")]
