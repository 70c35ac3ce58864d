"""Files that are not what they should be: a ValueError names the file and what was expected, the layer stays."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qgru import QuantGRU, load_config
from tests.refusal import assert_unchanged, quantized, refused, snapshot


def written(tmp_path: Path, change: Callable[[dict], object] = lambda content: None, **options: object) -> Path:
    path = tmp_path / "params.json"
    quantized(**options).export_quant_params(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_layers": 2}, ["num_layers", "2", "1"]),
        ({"bidirectional": True}, ["bidirectional"]),
        ({"bias": False}, ["bias"]),
    ],
)
def test_a_file_of_another_module(options: dict, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, **options)
    for gru in (quantized(), QuantGRU(3, 5, batch_first=True)):
        refused(gru, lambda g: g.load_quant_params(path), ValueError, path.name, *named)


@pytest.mark.parametrize(
    ("gru", "named"),
    [(QuantGRU(4, 5), ["input_size", "3", "4"]), (QuantGRU(3, 6), ["hidden_size", "5", "6"])],
)
def test_a_file_of_another_size(gru: QuantGRU, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path)
    refused(gru, lambda g: g.load_quant_params(path), ValueError, path.name, *named)


def set_entry(op: str, **fields: object) -> Callable[[dict], object]:
    return lambda content: content["operators"][op].update(fields)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["operators"].pop("z_pre"), ["z_pre"]),
        (lambda c: c["operators"].update(zz_pre=c["operators"].pop("z_pre")), ["zz_pre", "z_pre"]),
        (lambda c: c.pop("operators"), ["operators"]),
        (lambda c: c.pop("model_info"), ["model_info"]),
        (lambda c: c.update(operators=[]), ["operators"]),
        (lambda c: c["model_info"].update(gate_order="zrx"), ["gate_order", "zrx"]),
        (lambda c: c["model_info"].update(gate_order=3), ["gate_order", "3"]),
        (lambda c: c["operators"]["W"].update(n=c["operators"]["W"]["n"][:-1]), ["W", "14", "15"]),
        (lambda c: c["operators"]["W"].update(zero_point=1), ["W", "zero_point"]),
        (set_entry("z_pre", n=65), ["z_pre", "65"]),
        (set_entry("z_pre", n=2.5), ["z_pre", "2.5"]),
        (set_entry("z_pre", n=None, scale=0.3), ["z_pre"]),
        (set_entry("z_pre", n=[1, 2]), ["z_pre"]),
        (set_entry("z_pre", dtype="INT33"), ["z_pre", "33"]),
        (set_entry("z_pre", dtype="FLOAT8"), ["z_pre", "FLOAT8"]),
        (set_entry("z_pre", dtype=8), ["z_pre", "8"]),
        (set_entry("z_pre", symmetric=False, zero_point=1000), ["z_pre", "zero_point", "1000"]),
        (set_entry("z_pre", symmetric=True, zero_point=1), ["z_pre", "zero_point", "1"]),
        (set_entry("z_pre", symmetric="yes"), ["z_pre", "yes"]),
        (lambda c: c["operators"].update(z_pre=3), ["z_pre", "3"]),
        (lambda c: [c["operators"]["x"].pop("n"), c["operators"]["x"].update(scale=0.3)], ["x", "scale", "0.3"]),
        (lambda c: [c["operators"]["x"].pop(key) for key in ("n", "scale")], ["x", "scale"]),
        (set_entry("z_pre", n=True), ["operators.z_pre", "n is True"]),
        (set_entry("z_pre", n=8.0), ["operators.z_pre", "n is 8.0"]),
        (set_entry("z_pre", n="8"), ["operators.z_pre", "n is '8'"]),
        (set_entry("z_pre", zero_point=False), ["operators.z_pre", "zero_point is False"]),
        (set_entry("z_pre", zero_point=[0]), ["operators.z_pre", "zero_point is [0]"]),
        (set_entry("z_pre", dtype="INT\uff18"), ["operators.z_pre", "dtype"]),
        (set_entry("z_pre", dtype=["INT8"]), ["operators.z_pre", "dtype is ['INT8']"]),
        (set_entry("z_pre", dtype="INT" + "9" * 5000), ["operators.z_pre", "dtype", "5005 characters"]),
        (set_entry("W", n=[True] * 15), ["operators.W", "n is True"]),
        (set_entry("W", n=[[7]] * 15), ["operators.W", "n is [7]"]),
        (set_entry("W", zero_point=[0] * 14 + [None]), ["operators.W", "zero_point is None"]),
        (lambda c: c["model_info"].update(input_size=3.0), ["input_size is 3.0", "3, the module's"]),
        (lambda c: c["model_info"].update(num_layers=True), ["num_layers is True"]),
        (lambda c: c["model_info"].update(bias=1), ["bias is 1"]),
        (lambda c: c["operators"].update({"input.x": c["operators"]["x"]}), ["'operators'", "'input.x' twice"]),
    ],
)  # fmt: skip
def test_a_broken_entry(change: Callable, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, change)
    refused(quantized(), lambda g: g.load_quant_params(path), ValueError, path.name, *named)


@pytest.mark.parametrize("scale", [0, 0.0, -0.5, 0.3, True, "0.5", None, [0.5], {}, 10**19])
def test_a_scale_is_a_power_of_two(scale: object, tmp_path: Path) -> None:
    path = written(tmp_path, lambda c: [c["operators"]["x"].pop("n"), c["operators"]["x"].update(scale=scale)])
    refused(
        quantized(), lambda g: g.load_quant_params(path), ValueError, path.name, "operators.x", f"scale is {scale!r}"
    )


@pytest.mark.parametrize("scale", [1, 2, 0.5, 2.0**-64, 2.0**64])
def test_a_scale_may_stand_for_the_exponent(scale: float, tmp_path: Path) -> None:
    path = written(tmp_path, lambda c: [c["operators"]["x"].pop("n"), c["operators"]["x"].update(scale=scale)])
    gru = quantized()
    gru.load_quant_params(path)
    assert gru.grids()["input.x"].scale == scale


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.9, 0.999])
def test_a_truncated_file(keep: float, tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text().rstrip()
    path.write_text(text[: int(len(text) * keep) if keep < 1 else 1])
    refused(quantized(), lambda g: g.load_quant_params(path), ValueError, path.name)
    with pytest.raises(ValueError, match=path.name):
        load_config(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
def test_a_file_of_another_kind(content: str, tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(content)
    refused(quantized(), lambda g: g.load_quant_params(path), ValueError, path.name)


def test_an_export_to_nowhere_leaves_nothing(tmp_path: Path) -> None:
    refused(
        quantized(), lambda g: g.export_quant_params(tmp_path / "no" / "folder" / "q.json"), FileNotFoundError, "folder"
    )


@pytest.mark.parametrize("write", ["export_quant_params", "to_json"])
def test_a_file_that_can_t_be_finished_is_the_former_one(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gru, path = quantized(), tmp_path / "file.json"
    act = getattr(gru if write == "export_quant_params" else gru.bitwidth_config, write)
    act(path)
    former = path.read_text()
    gru.adjust_quant_config("x", bitwidth=5)
    act = getattr(gru if write == "export_quant_params" else gru.bitwidth_config, write)

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left.*file.json"):
        patch.setattr("os.replace", full)
        act(path)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == former
    act(path)
    assert path.read_text() != former


JUNK = (
    *("null", "true", "0", "-1", "8", "8.0", "65", "1e5", "-0.0", "0.3", '""', '"8"', "[]", "[0]", "{}", '{"a": 1}'),
    *("1e999", "-1e999", "NaN", "-Infinity", "9" * 19, "9" * 5000, f'"{"x" * 10_000}"', f"[{'0,' * 5000}0]"),
    *("[" * 50_000, "[" * 900 + "]" * 900, '{"a":' * 50_000, '"INT8"', '"UINT32"', '"\\u0000"', '"\\ud800"'),
)
"""Texts of values, some of which are no JSON."""


def positions(node: object) -> list[tuple]:
    """Every (container, key) of a JSON document."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in entries for place in ((node, key), *positions(value))]


def mutated(text: str, rng: random.Random) -> str:
    """The text of a document with one value replaced, dropped, moved or renamed, or with some characters changed."""
    content = json.loads(text)
    container, key = rng.choice(positions(content))
    kind = rng.choice(("replace", "replace", "replace", "drop", "move", "rename", "repeat", "cut", "characters"))
    if kind == "replace":
        container[key] = "<here>"
    elif kind == "drop":
        del container[key]
    elif kind == "move":
        other, place = rng.choice(positions(content))
        other[place] = copy.deepcopy(container[key])
    elif kind == "rename" and isinstance(container, dict):
        container[rng.choice(("x", "z_outt", "op", "", "k" * 10_000, "operators_l1"))] = container.pop(key)
    elif kind == "repeat" and isinstance(container, dict):
        return json.dumps(content).replace(f'"{key}": ', f'"{key}": null, "{key}": ', 1)
    elif kind == "cut":
        return text[: rng.randrange(len(text))]
    elif kind == "characters":
        start = rng.randrange(len(text))
        return text[:start] + "".join(rng.choices('{}[],:"0-.e\\n\x7f', k=3)) + text[start + rng.randrange(4) :]
    return json.dumps(content).replace('"<here>"', rng.choice(JUNK), 1)


def assert_a_brief_value_error(error: pytest.ExceptionInfo, path: Path) -> None:
    assert type(error.value) is ValueError and str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 600 + len(str(path))


def test_no_mutation_of_quant_params_does_more_than_a_value_error(tmp_path: Path) -> None:
    path, rng = written(tmp_path, bidirectional=True), random.Random(8)
    text, refusals = path.read_text(), 0
    gru = quantized(bidirectional=True)
    for _ in range(400):
        path.write_text(mutated(text, rng))
        before = snapshot(gru)
        try:
            gru.load_quant_params(path)
        except Exception:
            error = pytest.ExceptionInfo.from_current()
            assert_a_brief_value_error(error, path)
            assert_unchanged(gru, before)
            refusals += 1
    assert 200 < refusals < 400


def test_no_mutation_of_a_configuration_does_more_than_a_value_error(tmp_path: Path) -> None:
    path, rng = tmp_path / "config.json", random.Random(8)
    load_config("int8_mixed").to_json(path)
    text, refusals = path.read_text(), 0
    for _ in range(400):
        path.write_text(mutated(text, rng))
        try:
            load_config(path)
        except Exception:
            assert_a_brief_value_error(pytest.ExceptionInfo.from_current(), path)
            refusals += 1
    assert 200 < refusals < 400
