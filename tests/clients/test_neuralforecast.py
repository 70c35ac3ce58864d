"""neuralforecast, unmodified: its GRU models through the whole lifecycle, and through its ways to save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qgru
from qgru.callbacks import QuantizationLifecycle

from .exported import assert_exported, assert_same_layers

pytest.importorskip("neuralforecast", reason="needs pip install 'qgru[clients]'")

from neuralforecast import NeuralForecast  # noqa: E402
from neuralforecast.losses.pytorch import MAE, DistributionLoss  # noqa: E402
from neuralforecast.models import GRU, DeepAR  # noqa: E402

pytestmark = pytest.mark.slow
STEPS = np.arange(90)
FRAME = pd.DataFrame(
    {"unique_id": "a", "ds": pd.date_range("2024", periods=len(STEPS)), "y": np.sin(STEPS / 3).astype("float32")}
)
MODELS = {
    "direct": {"recurrent": False, "loss": MAE()},
    "recurrent": {"recurrent": True, "loss": MAE()},
    "distribution": {"recurrent": True, "loss": DistributionLoss("Normal", level=[80])},  # DeepAR with a GRU
}


def step(module: Any, batch: Any) -> Any:
    return module.training_step(batch, 0)


@pytest.fixture(autouse=True)
def _loads_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRU, "_load_from_state_dict", GRU._load_from_state_dict)
    qgru.loads_quantized(GRU)


def settings(folder: Path) -> dict[str, Any]:
    lifecycle = QuantizationLifecycle("int8", calibrate_at_epoch=2, export_dir=str(folder / "files"), forward_fn=step)
    trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return {"h": 3, "input_size": 12, "max_steps": 4, "random_seed": 1, "callbacks": [lifecycle], **trainer}


@pytest.mark.parametrize("name", MODELS)
def test_whole_lifecycle_save_and_load(name: str, tmp_path: Path) -> None:
    model = GRU(encoder_hidden_size=6, encoder_n_layers=2, **MODELS[name], **settings(tmp_path))
    forecasts = NeuralForecast([model], freq="D")
    forecasts.fit(FRAME)
    model = forecasts.models[0]
    assert_exported(model, tmp_path / "files")
    expected = forecasts.predict()

    forecasts.save(str(tmp_path / "saved"))
    loaded = NeuralForecast.load(str(tmp_path / "saved"))
    assert_same_layers(model, loaded.models[0])
    pd.testing.assert_frame_equal(loaded.predict(), expected, check_exact=True)

    model.save(str(tmp_path / "model"))
    assert_same_layers(model, GRU.load(str(tmp_path / "model")))


def test_deepar_which_holds_an_lstm_is_refused_by_name(tmp_path: Path) -> None:
    forecasts = NeuralForecast([DeepAR(lstm_hidden_size=6, **settings(tmp_path))], freq="D")
    with pytest.raises(Exception, match="DeepAR holds no nn.GRU"):
        forecasts.fit(FRAME)
