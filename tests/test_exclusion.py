"""Layers that stay in float, by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from qgru import convert, quantized_layers
from qgru.exclusion import check_patterns, staying_float


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)
        self.teacher = nn.ModuleDict({"encoder": nn.GRU(3, 4), "decoder": nn.ModuleList([nn.GRU(3, 4)])})
        self.shared = self.gru
        self.cell, self.rnn = nn.GRUCell(3, 4), nn.RNN(3, 4)


@pytest.mark.parametrize(
    ("exclude", "quantized"),
    [
        ((), ["gru", "teacher.encoder", "teacher.decoder.0"]),
        (["teacher.*"], ["gru"]),
        (("teacher.encoder",), ["gru", "teacher.decoder.0"]),
        (["*.?ecoder.[0-9]"], ["gru", "teacher.encoder"]),
        (["shared"], ["teacher.encoder", "teacher.decoder.0"]),
        (["*"], []),
    ],
)
def test_names_with_wildcards(exclude: Any, quantized: list[str]) -> None:
    model = Student()
    assert convert(model, exclude=exclude) is model
    assert list(quantized_layers(model)) == quantized
    assert convert(model, exclude) is model and list(quantized_layers(model)) == quantized  # a second time
    floats = [layer for layer in model.modules() if type(layer) is nn.GRU]
    assert len(floats) + len(quantized) == 3 and not any(list(layer.buffers()) for layer in floats)


def test_the_root_itself() -> None:
    gru = nn.GRU(3, 4)
    assert type(convert(gru, exclude=[""])) is nn.GRU


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["teacher"], "exclude has 'teacher', which matches no nn.GRU; expected one of 'gru', 'teacher.encoder', "),
        (["gru", "cell"], "exclude has 'cell', which matches no nn.GRU"),
        ("teacher.*", "exclude is 'teacher.*'; expected a list of names with wildcards"),
        ([3], "exclude is [3]; expected a list"),
    ],
)
def test_a_name_that_matches_nothing_changes_nothing(exclude: Any, message: str) -> None:
    model = Student()
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(model, exclude=exclude)
    assert not quantized_layers(model)


def test_a_layer_that_is_quantized_already() -> None:
    model = convert(Student())
    with pytest.raises(ValueError, match="'teacher.encoder' is a QuantGRU already.*qgru.revert"):
        convert(model, exclude=["gru", "teacher.e*"][1:])


def test_what_stays_in_float() -> None:
    model = Student()
    model.scripted = torch.jit.script(nn.Sequential(nn.GRU(3, 4)))
    assert staying_float(convert(model, ["teacher.*"])) == {
        "teacher.encoder": "excluded",
        "teacher.decoder.0": "excluded",
        "cell": "nn.GRUCell",
        "scripted.0": "scripted GRU",
    }
    assert check_patterns(["a", "b"]) == ("a", "b")
