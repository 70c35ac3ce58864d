"""The stages as functions of a module and batches."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import qgru
from qgru.stages import calibrate, export, finalize, start_qat_epoch
from qgru.stages.exporting import example_args

from .models import Model, batches, calibrated

ROOT = Path(__file__).parents[2]


def test_import_loads_neither_lightning_nor_onnx() -> None:
    code = "import sys, qgru; qgru.stages.export; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "qgru" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "lightning_fabric", "onnx", "onnxruntime", "onnxscript"}


def test_the_readmes_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = (ROOT / "README.md").read_text()
    snippet = re.search(r"Without Lightning.*?```python\n(.*?)```", text, re.DOTALL).group(1)
    model, data = Model(), batches()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = [parameter.clone() for parameter in model.parameters()]

    def train_one_epoch(model: nn.Module) -> None:
        assert model.gru.use_quantization
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    monkeypatch.chdir(tmp_path)
    exec(snippet, {"model": model, "batches": data, "train_one_epoch": train_one_epoch, "x": data[0][0]})
    assert capsys.readouterr().out == "0\n"
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"quant_params.json", "bitwidth_config.json", "model_qdq.onnx"}


def test_from_calibration_to_training() -> None:
    model, modes = qgru.convert(Model()), []
    model.head.eval()
    model.dropout.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    assert calibrate(model, batches()) == 4
    assert modes == [(False, False)] * 4 and model.training and model.dropout.training and not model.head.training
    assert model.gru.has_observations() and not model.gru.is_calibrated() and not model.gru.calibrating
    sqnr = finalize(model)
    assert model.gru.is_calibrated() and not model.gru.use_quantization
    assert {"gru/gate.z_out", "gru/weight.W"} <= sqnr.keys() and all(value > 20 for value in sqnr.values())
    assert finalize(model) == {} and calibrate(model, []) == 0
    assert start_qat_epoch(model) and model.gru.use_quantization


def test_operators_past_the_first_layer_carry_a_suffix() -> None:
    gru = qgru.convert(nn.GRU(3, 4, num_layers=2, bidirectional=True))
    calibrate(gru, batches(1))
    suffixes = {key.rpartition("z_out")[2] for key in finalize(gru) if "z_out" in key}
    assert suffixes == {"", "_reverse", "_l1", "_l1_reverse"}


def test_random_states_are_left_alone() -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    def draw(module: nn.Module, batch: Any) -> None:
        module(batch[0] + torch.rand(()) + random.random() + np.random.rand())

    model, data = qgru.convert(Model()), batches()
    before = states()
    calibrate(model, data, draw)
    assert states() == before


def test_calibration_that_fails_observes_no_more() -> None:
    model = qgru.convert(Model())
    with pytest.raises(RuntimeError, match="forward_fn"):
        calibrate(model, [batches()[0], [torch.randn(2, 3, 99)]])
    assert not model.gru.calibrating and model.training
    other = Model()
    other.load_state_dict(qgru.float_state_dict(model))
    assert calibrated(model).gru.grids() == calibrated(other).gru.grids()


def test_exported_files(tmp_path: Path) -> None:
    model = calibrated()
    example = torch.randn(2, 4, 3)
    model.kept = example.requires_grad_() * 2, threading.Lock()  # neither can be copied
    reports = export(model, tmp_path, ("qdq", "float"), (example.detach(),))
    assert reports.keys() == {"model_qdq.onnx", "model_float.onnx"}
    assert reports["model_qdq.onnx"].differing_integers == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"bitwidth_config.json", "quant_params.json", "model_qdq.onnx", "model_float.onnx"}
    assert all(module.training for module in model.modules()) and not model.gru.use_quantization
    other = qgru.convert(Model()).gru
    other.load_quant_params(tmp_path / "quant_params.json")
    assert other.grids() == model.gru.grids()
    assert qgru.load_config(tmp_path / "bitwidth_config.json") == model.gru.bitwidth_config


class Layers(nn.Module):
    """Any number of GRUs under any names, one after the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.GRU(3, 3, batch_first=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)[0]
        return x


def test_exported_files_of_several_layers(tmp_path: Path) -> None:
    export(calibrated(Layers("a", "b")), tmp_path, ())
    expected = {f"{name}.{kind}.json" for name in "ab" for kind in ("quant_params", "bitwidth_config")}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_layer_names_neither_leave_the_folder_nor_collide(tmp_path: Path) -> None:
    names = [f"{tmp_path}/evil".replace(".", "_"), "a/b", "a_b", "A_b", "a_b-2"]
    model = calibrated(Layers(*names))
    export(model, tmp_path / "files", ())
    assert [path.name for path in tmp_path.iterdir()] == ["files"]
    files = list((tmp_path / "files").iterdir())
    assert len({path.name.casefold() for path in files}) == 2 * 5
    weights = {str(gru.quantized_weights()["weight.W"].flatten().tolist()) for gru in model.children()}
    written = {path.read_text() for path in files if path.name.endswith("quant_params.json")}
    assert len(weights) == len(written) == 5


def test_unknown_format_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tflite'"):
        export(calibrated(), tmp_path / "files", ("tflite",))
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = calibrated(), tmp_path / "quant_params.json"
    export(model, tmp_path, ())
    before = path.read_text()

    def full(self: Any, path: Path, include_weights: bool) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(qgru.QuantGRU, "export_quant_params", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, tmp_path, ())
    assert path.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"quant_params.json", "bitwidth_config.json"}


class TakesObject(Model):
    def forward(self, batch: Any) -> Any:
        return super().forward(batch.x if isinstance(batch, SimpleNamespace) else batch)


class Packs(Model):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> Any:
        packed = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True)
        return self.gru(packed)[1]


@pytest.mark.parametrize(
    ("kind", "args", "why"),
    [
        (
            TakesObject,
            (SimpleNamespace(x=torch.randn(2, 3, 3)),),
            "TakesObject is given a SimpleNamespace",
        ),
        (Packs, (torch.randn(2, 3, 3), torch.tensor([3, 2])), "gru: its input is a PackedSequence"),
        (Model, None, "no example of its forward"),
    ],
)
def test_model_that_is_exported_by_layers(tmp_path: Path, kind: Any, args: Any, why: str) -> None:
    model = calibrated(kind())
    with pytest.warns(
        UserWarning, match=rf"{kind.__name__} can't .* as a whole .*{why}.* give example_inputs: tensors"
    ):
        reports = export(model, tmp_path, ("qdq",), args)
    assert export(model, tmp_path / "whole", ("qdq",), (torch.randn(2, 3, 3),)).keys() == {"model_qdq.onnx"}
    assert reports.keys() == {"model_qdq/gru.onnx"}
    assert (tmp_path / "quant_params.json").is_file() and (tmp_path / "model_qdq" / "gru.onnx").is_file()
    assert not (tmp_path / "model_qdq.onnx").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_model(tmp_path: Path, whole: bool) -> None:
    model = calibrated()
    if whole:
        exported: Any = torch.compile(model, backend="eager")
    else:
        model.gru = torch.compile(model.gru, backend="eager")
        exported = model
    compiled, forward = model.gru, model.forward
    export(exported, tmp_path, ("qdq",), (torch.randn(2, 4, 3),))
    assert (tmp_path / "model_qdq.onnx").is_file() and (tmp_path / "quant_params.json").is_file()
    assert model.gru is compiled and model.forward == forward


class Options(nn.Module):
    def forward(self, x: Any, y: int = 2, *, z: int = 3) -> Any:
        return x


def test_example_args() -> None:
    module = Options()
    assert example_args(module, lambda: module(1)) == (1,)
    assert example_args(module, lambda: module(x=1, y=5)) == (1, 5)
    assert example_args(module, lambda: module(1, z=4)) is None
    assert example_args(module, lambda: module.forward(1)) is None
    assert not module._forward_pre_hooks


def test_example_args_are_on_the_cpu() -> None:
    Pair, module, tensor = namedtuple("Pair", "a b"), Options(), torch.ones(2, device="meta")
    moved: list[torch.device] = []

    class Moves:
        def to(self, device: torch.device) -> None:
            moved.append(device)

    with pytest.raises(NotImplementedError, match="meta"):
        example_args(module, lambda: module(Pair([tensor], {"k": 1})))
    batch = Pair([torch.ones(2)], {"k": (Moves(), "text")})
    (found,) = example_args(module, lambda: module(batch))
    assert type(found) is Pair and found.b["k"] == batch.b["k"] and moved == [torch.device("cpu")]
