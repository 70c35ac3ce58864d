"""What a fit of somebody else's model leaves: its layers' files, and what ONNX Runtime makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import qgru
from qgru.export import verify_onnx


def assert_exported(model: nn.Module, folder: Path) -> None:
    """Every layer was trained quantized and has a file that computes its integers; the model takes no tensors."""
    assert {path.name for path in folder.iterdir()} >= {"float.ckpt", "ptq.ckpt", "qat.ckpt"}
    layers = qgru.quantized_layers(model)
    assert layers
    for name, gru in layers.items():
        assert gru.is_calibrated() and gru.use_quantization
        x = torch.randn(4, 7, gru.input_size)
        report = verify_onnx(gru, x, folder / "model_qdq" / f"{name}.onnx")
        assert report.differing_integers == 0 < report.total_integers


def assert_same_layers(model: nn.Module, other: nn.Module) -> None:
    """Both models' layers are quantized, with the same integers."""
    layers, others = qgru.quantized_layers(model), qgru.quantized_layers(other)
    assert layers and list(layers) == list(others)
    for name, gru in layers.items():
        assert others[name].is_calibrated() and others[name].use_quantization
        state, loaded = gru.state_dict(), others[name].state_dict()
        assert list(state) == list(loaded)
        assert all(torch.equal(state[key], loaded[key]) for key in state)
