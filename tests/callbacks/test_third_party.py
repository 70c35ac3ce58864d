"""Somebody else's package, unmodified: pytorch-forecasting's `RecurrentNetwork` and its own subclass of `nn.GRU`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE
from pytorch_forecasting.models.nn.rnn import GRU

import qgru
from qgru.callbacks import QuantizationLifecycle

from .models import assert_same, trainer


@pytest.fixture(scope="module")
def series() -> TimeSeriesDataSet:
    steps = np.arange(60)
    frame = pd.DataFrame({"time": steps, "value": np.sin(steps / 3).astype("float32"), "series": "a"})
    return TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=6,
        max_prediction_length=3,
        time_varying_unknown_reals=["value"],
    )


def network(series: TimeSeriesDataSet) -> RecurrentNetwork:
    return RecurrentNetwork.from_dataset(series, cell_type="GRU", hidden_size=6, rnn_layers=2, loss=MAE())


def test_whole_lifecycle(tmp_path: Path, series: TimeSeriesDataSet) -> None:
    model, files = network(series), tmp_path / "files"
    assert isinstance(model.rnn, GRU) and type(model.rnn) is not torch.nn.GRU
    training, validation = (series.to_dataloader(train=train, batch_size=16) for train in (True, False))
    lifecycle = QuantizationLifecycle("int8", calibrate_at_epoch=1, export_dir=str(files))
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    with pytest.warns(UserWarning, match="RecurrentNetwork can't be exported as a whole"):
        trainer(tmp_path, lifecycle, checkpoint, max_epochs=3).fit(model, training, validation)
    assert isinstance(model.rnn, GRU) and model.rnn.is_calibrated() and model.rnn.use_quantization
    assert {path.name for path in files.iterdir()} >= {"float.ckpt", "ptq.ckpt", "qat.ckpt", "quant_params.json"}
    assert (files / "model_qdq" / "rnn.onnx").is_file()

    # Its checkpoints hold the data set's parameters, objects of its own.
    saved, best = (torch.load(p, weights_only=False) for p in (files / "qat.ckpt", checkpoint.best_model_path))
    assert_same(saved["state_dict"], best["state_dict"])
    batch = next(iter(validation))[0]
    model.load_state_dict(best["state_dict"])
    loaded = qgru.convert(network(series))
    loaded.load_state_dict(saved["state_dict"])
    quantized = model.eval()(batch).prediction
    assert torch.equal(loaded.eval()(batch).prediction, quantized)
    model.rnn.use_quantization = False
    assert 0 < (model(batch).prediction - quantized).abs().max() < 0.2
