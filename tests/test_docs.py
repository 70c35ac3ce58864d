"""The documents: links lead somewhere, the definition names every operator, and its example computes what it says."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch

from qgru.grid import Grid
from qgru.ops.exact import quantize_real
from qgru.ops.reference import Cell, gru_layer
from qgru.schema import ACTIVATIONS, OPERATORS, OPTIONAL, WEIGHTS, BitwidthConfig
from tests.oracle import OracleDirection, OracleGrid
from tests.random_gru import random_grids
from tests.refusal import quantized

ROOT = Path(__file__).parents[1]
NUMERICS = ROOT / "docs" / "numerics.md"
DOCUMENTS = sorted(
    path
    for pattern in ("README.md", "docs/*.md", "recipes/*/README.md", "benchmarks/README.md", "qgru/**/README.md")
    for path in ROOT.glob(pattern)
)
SOURCES = sorted(
    path
    for folder in ("qgru", "tests", "benchmarks", "recipes", "examples", "conf")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".yaml")
)
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", FENCED.sub("", path.read_text()), re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", heading).lower()).strip().replace(" ", "-")
        found.append(f"{slug}-{n}" if (n := sum(re.sub(r"-\d+$", "", f) == slug for f in found)) else slug)
    return set(found)


def dead(path: Path) -> list[str]:
    """The links of a document that lead to no file, or to no heading of it."""
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", path.read_text()))
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose)
    return [link for link in links if not re.match(r"https?:|mailto:", link) and not leads_somewhere(path, link)]


def leads_somewhere(path: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    return target.exists() and ROOT in (target, *target.parents) and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(path: Path) -> None:
    assert not dead(path)


@pytest.mark.parametrize(
    ("link", "alive"),
    [
        ("#exactness-domain", True),
        ("numerics.md#quant_paramsjson", True),
        ("../README.md", True),
        ("../README.md#the-operators", True),
        ("../conf/quant", True),
        ("#exactness", False),
        ("../README.md#nowhere", False),
        ("nowhere.md", False),
        ("../../", False),
    ],
)
def test_a_dead_link_is_told_from_a_live_one(link: str, alive: bool) -> None:
    assert leads_somewhere(NUMERICS, link) is alive


def test_every_document_that_a_source_cites_is_there() -> None:
    cited = {link for path in SOURCES for link in re.findall(r"docs/\w+\.md(?:#[\w-]+)?", path.read_text())}
    assert "docs/numerics.md#files" in cited
    assert not [link for link in cited if not leads_somewhere(ROOT / "README.md", link)]


# --- the definition ------------------------------------------------------------------------------------------------


def section(heading: str) -> str:
    """The text under a heading of the definition, down to the next one of its level or above."""
    level, text = heading.count("#"), NUMERICS.read_text()
    body = text.split(f"\n{heading}\n")[1]
    fences = [range(*match.span()) for match in FENCED.finditer(body)]
    ends = re.finditer(rf"^#{{1,{level}}} ", body, re.M)
    return body[: next((end.start() for end in ends if not any(end.start() in fence for fence in fences)), None)]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(heading), re.M | re.S)


def test_every_operator_is_described_and_stands_in_the_equations() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", section("## Operators"), re.M)
    assert rows == list(OPERATORS)
    assert set(re.findall(r"\bQ_(\w+\.\w+)\(", blocks("## One time step", "")[0])) == set(OPERATORS)


def test_the_configuration_that_is_shown_loads() -> None:
    config = BitwidthConfig.from_mapping(json.loads(blocks("### Bit width configuration", "json")[0]))
    assert config.operators["gate.z_out"].is_unsigned and not config.operators["gate.z_out"].is_symmetric


def test_every_key_of_quant_params_is_described(tmp_path: Path) -> None:
    quantized(bidirectional=True, num_layers=2).export_quant_params(tmp_path / "q.json", include_weights=True)
    content = json.loads((tmp_path / "q.json").read_text())
    keys = {*content, *content["model_info"], *(key for entry in content["operators"].values() for key in entry)}
    table = "".join(line for line in section("### quant_params.json").splitlines() if line.startswith("|"))
    described = set(re.findall(r"`(\w+)`", table))
    assert keys <= described


@cache
def example() -> dict:
    """The names that the worked example's program defines, and under "printed" what it prints."""
    names: dict = {"__name__": "example"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec("".join(blocks("### A worked example", "python")), names)
    return {**names, "printed": printed.getvalue()}


@dataclass(frozen=True)
class Recorder:
    """A quantizer of the oracle that keeps its integers."""

    name: str
    grid: OracleGrid
    seen: dict[str, list[int]]

    def __call__(self, value: Fraction | float) -> Fraction:
        self.seen.setdefault(self.name, []).append(self.grid.integer(value))
        return self.grid(value)


def by_oracle(grids: dict, weights: dict, x: list[int], h: list[int]) -> dict[str, list[int]]:
    """All integers of a step by operator; weights: name to rows of integers."""
    reals = [[[float(g.real(q)) for q in row] for g, row in zip(grids[n], weights[n], strict=True)] for n in WEIGHTS]
    W, R, bw, br = reals
    seen: dict[str, list[int]] = {}
    recorders = {name: Recorder(name, grid, seen) for name, grid in grids.items() if name not in WEIGHTS}
    of_weights = {name: grids[name] for name in WEIGHTS}
    direction = OracleDirection(W, R, [b for (b,) in bw], [b for (b,) in br], recorders, of_weights)
    direction.run([[grids["input.x"].real(q) for q in x]], [grids["output.h"].real(q) for q in h])
    assert seen.pop("input.x") == x and seen["output.h"][: len(h)] == h
    return {**seen, "output.h": seen["output.h"][len(h) :]}


def by_reference(grids: dict, weights: dict, x: list[int], h: list[int]) -> list[int]:
    """The next state's integers."""

    def grid(name: str) -> Grid:
        rows = grids[name] if name in WEIGHTS else [grids[name]]
        exponents = tuple(row.exp2_inv for row in rows)
        kind = rows[0].bitwidth, rows[0].zero_point == 0, rows[0].is_unsigned
        return Grid(*kind, exponents if name in WEIGHTS else exponents[0], rows[0].zero_point)

    own = {name: grid(name) for name in grids}
    integers = {name: torch.tensor(weights[name]) for name in WEIGHTS}
    parameters = [own[name].dequantize(integers[name]) for name in WEIGHTS]
    cell = Cell.from_parameters((*parameters[:2], parameters[2].squeeze(1), parameters[3].squeeze(1)), own)
    start = quantize_real(own["output.h"].dequantize(torch.tensor([h])), own["output.h"])
    states = gru_layer(quantize_real(own["input.x"].dequantize(torch.tensor([[x]])), own["input.x"]), start, cell)
    return own["output.h"].quantize(states.value)[0, 0].tolist()


def oracle_grid(grid: tuple) -> OracleGrid:
    return OracleGrid((grid.qmax - grid.qmin).bit_length(), grid.qmin == 0, grid.n, grid.zero_point)


def test_the_example_prints_what_the_page_says() -> None:
    assert example()["printed"] == blocks("### A worked example", "text")[0]


def test_the_example_s_numbers_are_the_oracle_s_and_the_reference_s() -> None:
    parameters = example()["parameters"]
    grids = {name: oracle_grid(grid) for name, grid in example()["grids"].items()}
    grids |= {name: [OracleGrid(8, False, n) for _, n in rows] for name, rows in parameters.items()}
    weights = {name: [row for row, _ in rows] for name, rows in parameters.items()}
    printed = dict(line.split(" ", 1) for line in example()["printed"].splitlines())
    seen = by_oracle(grids, weights, [-15, -15], [90])
    assert {name: " ".join(map(str, integers)) for name, integers in seen.items()} == printed
    assert by_reference(grids, weights, [-15, -15], [90]) == seen["output.h"] == [6]


def integers_on(rng: random.Random, grid: OracleGrid, count: int) -> list[int]:
    return [rng.randint(grid.qmin, grid.qmax) for _ in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_the_example_s_program_is_the_reference_on_any_grids(seed: int) -> None:
    rng = random.Random(seed)
    inputs, hidden = rng.randint(1, 4), rng.randint(1, 3)
    grids = random_grids(rng, range(1, 17) if seed % 4 else range(1, 33), inputs, hidden)
    grids.setdefault(OPTIONAL, grids["matmul.Rh"])
    lengths = dict(zip(WEIGHTS, (inputs, hidden, 1, 1), strict=True))
    weights = {name: [integers_on(rng, row, lengths[name]) for row in grids[name]] for name in WEIGHTS}
    x, h = integers_on(rng, grids["input.x"], inputs), integers_on(rng, grids["output.h"], hidden)
    own: Callable = example()["Grid"]
    theirs = {n: own(grids[n].qmin, grids[n].qmax, grids[n].exp2_inv, grids[n].zero_point) for n in ACTIVATIONS}
    rows = {n: [(row, g.exp2_inv) for row, g in zip(weights[n], grids[n], strict=True)] for n in WEIGHTS}
    seen = example()["step"](theirs, rows, x, h)
    assert seen == by_oracle(grids, weights, x, h)
    assert seen["output.h"] == by_reference(grids, weights, x, h)
