"""darts, unmodified: its recurrent models through the whole lifecycle and all of its ways to save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import qgru
from qgru.callbacks import QuantizationLifecycle

from .exported import assert_exported, assert_same_layers

pytest.importorskip("darts", reason="needs pip install 'qgru[clients]'")

from darts import TimeSeries  # noqa: E402
from darts.models import BlockRNNModel, RNNModel  # noqa: E402
from darts.models.forecasting.pl_forecasting_module import PLForecastingModule  # noqa: E402
from darts.utils.data.torch_datasets.utils import ModuleStage  # noqa: E402
from darts.utils.serialization import safe_globals  # noqa: E402

from qgru.checkpoints import rebuilt_lifecycle  # noqa: E402

pytestmark = pytest.mark.slow
SERIES = TimeSeries.from_values(np.sin(np.arange(80) / 3).astype("float32"))
MODELS = {
    "RNNModel": (RNNModel, {"training_length": 12}),
    "BlockRNNModel": (BlockRNNModel, {"output_chunk_length": 3, "n_rnn_layers": 2}),
}


def call(module: Any, batch: Any) -> Any:
    return module(batch.to_module_input(stage=ModuleStage.TRAIN))


@pytest.fixture(autouse=True)
def _loads_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLForecastingModule, "_load_from_state_dict", PLForecastingModule._load_from_state_dict)
    qgru.loads_quantized(PLForecastingModule)


def fitted(name: str, folder: Path) -> Any:
    cls, arguments = MODELS[name]
    lifecycle = QuantizationLifecycle("int8", calibrate_at_epoch=1, export_dir=str(folder / "files"), forward_fn=call)
    trainer = {"accelerator": "cpu", "callbacks": [lifecycle], "enable_progress_bar": False}
    model = cls(
        input_chunk_length=8,
        model="GRU",
        hidden_dim=6,
        n_epochs=3,
        random_state=0,
        pl_trainer_kwargs=trainer,
        model_name=name,
        work_dir=str(folder / "work"),
        save_checkpoints=True,
        **arguments,
    )
    return model.fit(SERIES)


@pytest.mark.parametrize("name", MODELS)
def test_whole_lifecycle_save_and_load(name: str, tmp_path: Path) -> None:
    model = fitted(name, tmp_path)
    assert_exported(model.model, tmp_path / "files")
    forecast = model.predict(4).values()

    whole, clean = str(tmp_path / "whole.pt"), str(tmp_path / "clean.pt")
    model.save(whole)
    model.save(clean, clean=True)
    with safe_globals([rebuilt_lifecycle, call]):  # darts reads no pickled callback that it isn't told of
        loaded = [
            type(model).load(whole),
            type(model).load(clean, pl_trainer_kwargs={"accelerator": "cpu"}),
            type(model).load_from_checkpoint(name, str(tmp_path / "work"), best=False),
        ]
    for other in loaded:
        assert_same_layers(model.model, other.model)
        assert np.array_equal(other.predict(4, SERIES).values(), forecast)


def test_its_own_export_writes_the_quantized_model(tmp_path: Path) -> None:
    model = fitted("BlockRNNModel", tmp_path)
    quantized = model.predict(3).values()
    for gru in qgru.quantized_layers(model.model).values():
        gru.export_mode = True
    model.to_onnx(str(tmp_path / "model.onnx"))
    x = SERIES.values()[-8:].reshape(1, 8, 1).astype("float32")
    (exported,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"past_target": x})
    for gru in qgru.quantized_layers(model.model).values():
        gru.export_mode = gru.use_quantization = False
    assert np.abs(exported.reshape(3, 1) - quantized).max() < 1e-6 < np.abs(model.predict(3).values() - quantized).max()
