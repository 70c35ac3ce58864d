"""What holds for every recipe."""

import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import lightning
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.utils.rnn import PackedSequence

from recipes.cascaded_tanks import CascadedTanks, LevelSensor
from recipes.mackey_glass import MackeyGlass, MackeyGlassForecaster
from recipes.module import learning_rate_factor
from recipes.sea_surface_temperature import ElNino, TemperatureForecaster
from recipes.speaker_identification import JapaneseVowels, SpeakerIdentifier

CONF = Path(__file__).parents[2] / "conf"
RECIPES = {
    "speaker_identification": (JapaneseVowels, SpeakerIdentifier),
    "sea_surface_temperature": (ElNino, TemperatureForecaster),
    "mackey_glass": (MackeyGlass, MackeyGlassForecaster),
    "cascaded_tanks": (CascadedTanks, LevelSensor),
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


def make_trainer(folder: Path, **options) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(default_root_dir=folder, **quiet, **{"enable_checkpointing": False, **options})


@cache
def loaded(name: str) -> lightning.LightningDataModule:
    data = RECIPES[name][0]()
    data.setup("fit")
    return data


@pytest.fixture
def data(name: str) -> lightning.LightningDataModule:
    """A fresh data module that need not load again."""
    return copy.copy(loaded(name))


def order(data: lightning.LightningDataModule, epoch: int) -> list[float]:
    """One number for each training example, in the order that the epoch serves them."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    firsts = []
    for x, _ in loader:
        if isinstance(x, PackedSequence):
            x = torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=True)[0]
        firsts += x.flatten(1)[:, :24].double().sum(1).tolist()
    return firsts


@every_recipe
def test_config_makes_the_recipe(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"recipe={name}", "seed=7", "trainer.max_epochs=11"])
    data, model = instantiate(config.datamodule), instantiate(config.model)
    assert (type(data), type(model)) == RECIPES[name]
    assert (data.seed, model.epochs) == (7, 11)
    assert config.optimized_metric == model.metric
    assert model.higher_is_better is (name == "speaker_identification")


@every_recipe
def test_training_order_depends_on_seed_and_epoch_alone(data: lightning.LightningDataModule) -> None:
    def of(seed: int, epoch: int) -> list[float]:
        data.seed = seed
        torch.rand(seed + epoch)  # wherever torch's stream stands
        return order(data, epoch)

    first = of(1, 3)
    assert first == of(1, 3)
    assert first != of(1, 4) and first != of(2, 3)
    assert sorted(first) == sorted(of(1, 4)) == sorted(of(2, 3))


@every_recipe
def test_two_processes_share_what_one_trains_on(data: lightning.LightningDataModule) -> None:
    alone = order(data, epoch=2)
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        shares.append(order(data, epoch=2))
    repeated = alone[:1] if len(alone) % 2 else []
    assert sorted(shares[0] + shares[1]) == sorted(alone + repeated)


@every_recipe
def test_fast_dev_run(name: str, data: lightning.LightningDataModule, tmp_path: Path) -> None:
    model = RECIPES[name][1]()
    trainer = make_trainer(tmp_path, fast_dev_run=True)
    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    assert list(metrics) == [model.metric]
    assert {metric for values in data.baselines().values() for metric in values} == {model.metric}


class Killed(Exception):
    """In place of the signal."""


class Kill(lightning.Callback):
    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise Killed


@every_recipe
def test_a_killed_run_resumed_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    options = {"noise": 0.0} if name == "speaker_identification" else {}  # who resumes must restore torch's stream

    def fit(folder: Path, *callbacks: lightning.Callback, ckpt_path: Path | None = None) -> lightning.LightningModule:
        torch.manual_seed(3)
        data, model = copy.copy(loaded(name)), RECIPES[name][1](epochs=4, **options)
        checkpoint = ModelCheckpoint(folder, "last", enable_version_counter=False)
        trainer = make_trainer(
            folder, max_epochs=4, limit_train_batches=5, enable_checkpointing=True, callbacks=[*callbacks, checkpoint]
        )
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return model

    with pytest.raises(Killed):
        fit(tmp_path / "killed", Kill())
    torch.rand(5)
    resumed = fit(tmp_path / "resumed", ckpt_path=tmp_path / "killed" / "last.ckpt")
    whole = fit(tmp_path / "whole").state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in resumed.state_dict().items())
    read = RECIPES[name][1].load_from_checkpoint(tmp_path / "resumed" / "last.ckpt")
    assert dict(read.hparams) == dict(resumed.hparams) and read.epochs == 4


@pytest.mark.parametrize(
    ("name", "epochs", "baseline", "at_least"),
    [
        ("speaker_identification", 15, "majority", lambda accuracy, _: accuracy > 0.96),
        ("sea_surface_temperature", 50, "climatology + AR(1)", lambda rmse, baseline: rmse <= baseline),
        ("mackey_glass", 8, "linear AR", lambda nrmse, baseline: nrmse < baseline / 3),
        ("cascaded_tanks", 15, "linear FIR", lambda nrmse, baseline: nrmse < baseline / 3),
    ],
)
def test_the_gru_beats_its_baseline(name: str, epochs: int, baseline: str, at_least, tmp_path: Path) -> None:
    data, model = copy.copy(loaded(name)), RECIPES[name][1](epochs=epochs)
    trainer = make_trainer(tmp_path, max_epochs=epochs)
    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    assert at_least(metrics[model.metric], data.baselines()[baseline][model.metric])


@every_recipe
def test_exported_forward_takes_any_batch_and_time(name: str, tmp_path: Path) -> None:
    model = RECIPES[name][1]().eval()
    inputs = model.gru.input_size
    example = model.example_input_array if model.example_input_array is not None else torch.randn(2, 16, inputs)
    axes = {"x": {0: "batch", 1: "time"}}
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (example,), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 1), (5, 23)):
        x = torch.randn(*shape, inputs)
        (y,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), atol=1e-5, rtol=1e-4)


def test_learning_rate_falls_to_a_tenth_over_seven_tenths() -> None:
    factors = [learning_rate_factor(epoch, 50) for epoch in range(50)]
    assert factors[0] == 1 and factors == sorted(factors, reverse=True)
    assert factors[17] > 0.55 > factors[18]
    assert factors[34] > 0.1 and factors[35:] == pytest.approx([0.1] * 15)
