"""Files that are not what they should be: a ValueError names the file and what was expected, the layer stays."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qgru import QuantGRU, load_config
from tests.refusal import quantized, refused


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
    ],
)  # fmt: skip
def test_a_broken_entry(change: Callable, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, change)
    refused(quantized(), lambda g: g.load_quant_params(path), ValueError, path.name, *named)


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
