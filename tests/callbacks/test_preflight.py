"""What would go wrong after hours is found before the first step, and looking for it leaves no trace."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning_utilities.core.rank_zero as rank_zero
import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.regression import MeanSquaredError

from qgru.callbacks import Calibrate, Export, QuantizationLifecycle
from qgru.export import formats
from qgru.ops import backends

from .models import Model, dataset, fit, loader, trainer


class Paired(Model):
    """Its forward takes more than what a batch holds first."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x * scale)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self(batch[0], torch.ones(())).square().mean()
        self.losses.append(loss.item())
        return loss

    validation_step = None


def step(module: Model, batch: Any) -> Any:
    return module.training_step(batch, 0)


@pytest.mark.parametrize("epoch", [None, 0, 3])
@pytest.mark.parametrize(
    ("forward_fn", "message"),
    [
        (None, r"calling Paired .* as module\(batch\[0\]\) failed with TypeError.*'scale'.*pass forward_fn"),
        (Paired.training_step, r"forward_fn\(module, batch\) failed with TypeError.*'batch_idx'.*training_step"),
        (lambda module, batch: batch["x"], r"training batch \(list\) as forward_fn\(module, batch\) failed"),
    ],
    ids=["default", "signature", "batch"],
)
def test_a_call_that_does_not_fit(tmp_path: Path, epoch: int | None, forward_fn: Any, message: str) -> None:
    model = Paired()
    with pytest.raises(RuntimeError, match=message):
        fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=epoch, forward_fn=forward_fn), model=model)
    assert not model.losses and not model._forward_pre_hooks


def test_calibration_as_a_callback_of_its_own_tries_its_call(tmp_path: Path) -> None:
    import qgru

    model = qgru.convert(Paired())
    with pytest.raises(RuntimeError, match="calling Paired"):
        fit(tmp_path, Calibrate(epoch=2), model=model)
    assert not model.losses


class WithSpare(Model):
    """It has a layer that nothing feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.GRU(3, 4)


@pytest.mark.parametrize("epoch", [None, 0])
def test_a_layer_that_no_batch_reaches(tmp_path: Path, epoch: int | None) -> None:
    model = WithSpare()
    with pytest.raises(RuntimeError, match=r"layer 'spare' saw no data.* \d training batches.*exclude=\['spare'\]"):
        fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=epoch), model=model)
    assert not model.losses
    quantized = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=epoch, exclude=["spare"]), model=WithSpare())
    assert type(quantized.spare) is nn.GRU and quantized.gru.is_calibrated()


class WithRare(Model):
    """Some batches reach a layer that others don't."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.rare(x)[0].mean() if x[0, 0, 0] > 0 else 0.0)


def test_a_layer_that_some_batch_reaches(tmp_path: Path) -> None:
    firsts = [(batch[0][0, 0, 0] > 0).item() for batch in loader()]
    assert firsts == [False, True, False, True]
    models = [seed_everything(3, verbose=False) and WithRare() for _ in range(2)]
    for model, callbacks in zip(models, ([], [QuantizationLifecycle()]), strict=True):
        seed_everything(4, verbose=False)
        trainer(tmp_path, *callbacks, max_epochs=2).fit(model, loader(sampler=range(24)))
    assert models[1].rare.is_calibrated()
    assert models[1].losses[:4] == models[0].losses[:4]  # that further batches were drawn for it moved nothing


class Remembering(Model):
    """Counts in buffers, keeps outputs, and draws random numbers, in forward and in its step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.metric, self.kept = nn.BatchNorm1d(6), MeanSquaredError(), []
        self.register_buffer("calls", torch.zeros(()))
        self.data: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x -= 0.1  # in place
        return super().forward(self.norm(x) + 0.1 * torch.rand(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.data.append(batch[0].sum().item())
        output = self(batch[0])
        self.metric(output, batch[1])
        self.kept.append(output)
        self.log("loss", output.mean(), on_step=True, on_epoch=True)
        self.log_dict({"mse": self.metric})
        return super().training_step(batch, batch_idx)


class Once(IterableDataset):
    """A stream that is gone once it was read."""

    def __init__(self) -> None:
        self.items = iter(dataset())

    def __iter__(self) -> Iterator[Any]:
        return self.items


@pytest.mark.parametrize("forward_fn", [None, step], ids=["default", "training_step"])
@pytest.mark.parametrize("kind", ["generator", "workers", "stream"])
def test_the_first_epochs_are_those_of_the_float_run(tmp_path: Path, kind: str, forward_fn: Any) -> None:
    """Nothing moves: no random state, sampler, loader, buffer, metric or list."""

    def run(*callbacks: Any) -> list[Any]:
        seed_everything(3, verbose=False)
        model, own = Remembering(), torch.Generator().manual_seed(5)
        settings = {"shuffle": True, "generator": own, "num_workers": int(kind == "workers")}
        data = DataLoader(Once(), 6) if kind == "stream" else loader(**settings)
        runner = trainer(tmp_path, *callbacks, max_epochs=1 if kind == "stream" else 2)
        runner.fit(model, data)
        logged = {key: value.item() for key, value in runner.callback_metrics.items()}
        return [model.losses, model.data, len(model.kept), float(model.calls), logged, own.get_state().tolist()]

    lifecycle = QuantizationLifecycle(qat=False, forward_fn=forward_fn)
    lifecycle._finish = lambda *_: None  # the float stage alone
    assert run(lifecycle) == run()


def test_training_step_serves_to_calibrate_and_to_export(tmp_path: Path) -> None:
    lifecycle = QuantizationLifecycle(forward_fn=step, export_dir=str(tmp_path / "files"))
    model = fit(tmp_path, lifecycle, model=Remembering, max_epochs=2)
    assert model.gru.is_calibrated() and (tmp_path / "files" / "model_qdq.onnx").is_file()
    assert "log" not in vars(model)


class PastForward(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(self.gru(batch[0])[0][:, -1]).square().mean()


def test_a_call_past_forward_says_that_layers_will_be_exported(tmp_path: Path) -> None:
    lifecycle = QuantizationLifecycle(forward_fn=step, export_dir=str(tmp_path / "files"))
    with pytest.warns(UserWarning) as caught:
        fit(tmp_path, lifecycle, model=PastForward, max_epochs=2)
    messages = [str(warning.message) for warning in caught]
    assert sum("forward_fn does not call PastForward itself" in message for message in messages) == 1
    assert (tmp_path / "files" / "model_qdq" / "gru.onnx").is_file()


def test_manual_optimization_in_a_step_is_named(tmp_path: Path) -> None:
    class Manual(Model):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()

    with pytest.raises(RuntimeError, match="forward_fn.* failed.*in eval mode and without gradients"):
        fit(tmp_path, QuantizationLifecycle(forward_fn=step), model=Manual())


class Drawing(Model):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)

    validation_step = None


def test_a_step_that_draws_its_batches_itself(tmp_path: Path) -> None:
    losses = [fit(tmp_path, *callbacks, model=Drawing).losses for callbacks in ((), (QuantizationLifecycle(),))]
    assert len(losses[0]) == 4 * 4 and losses[1][: 3 * 4] == losses[0][: 3 * 4]
    model = Drawing()
    with pytest.raises(RuntimeError, match="forward_fn"):
        fit(tmp_path, QuantizationLifecycle(forward_fn=lambda module, batch: batch["x"]), model=model)
    assert not model.losses


def test_a_first_batch_that_is_not_finite_is_spoken_of(tmp_path: Path) -> None:
    data, lifecycle = loader(), QuantizationLifecycle(qat=False)
    data.dataset.tensors[0][0, 0, 0] = torch.nan
    lifecycle._finish = lambda *_: None  # the float stage alone
    with pytest.warns(UserWarning, match="first training batch .*'input.x': a value is NaN"):
        trainer(tmp_path, lifecycle, max_epochs=1).fit(Model(), data)


def test_each_fit_of_a_callback_tries_anew(tmp_path: Path) -> None:
    called: list[Any] = []
    lifecycle = QuantizationLifecycle(forward_fn=lambda module, batch: called.append(module) or module(batch[0]))
    for _ in range(2):
        called.clear()
        model = fit(tmp_path, lifecycle, max_epochs=3)
        assert len(called) == 1 + 4 and called[0] is model
    called.clear()
    fit(tmp_path, lifecycle, model=model, max_epochs=1)  # calibrated already
    assert not called


def test_a_float_run_by_configuration_tries_nothing(tmp_path: Path) -> None:
    config = {"default_config": {"disable_quantization": True}}
    fit(tmp_path, QuantizationLifecycle(config, forward_fn=lambda *_: 1 / 0), max_epochs=1)


# --- what needs no batch -------------------------------------------------------------------------------------------


def test_a_missing_package_of_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnx" else name)
    model, arguments = Model(), {"calibrate_at_epoch": 1, "export_dir": str(tmp_path / "files")}
    with pytest.raises(ImportError, match=r"format 'qdq' needs onnx: pip install 'qgru\[onnx\]'.*export_formats=\(\)"):
        fit(tmp_path, QuantizationLifecycle(**arguments), model=model)
    assert type(model.gru) is nn.GRU and not model.losses and not (tmp_path / "files").exists()
    with pytest.raises(ImportError, match="format 'float' needs onnx"):
        fit(tmp_path, Export(tmp_path / "files", ("float",)))
    fit(tmp_path, QuantizationLifecycle(**arguments, export_formats=()), model=model, max_epochs=2)
    assert (tmp_path / "files" / "quant_params.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"calibrate_at_epoch": 9}, {"max_epochs": 2}, "calibrate_at_epoch=9 never comes: max_epochs=2 .* less than 2"),
        ({"calibrate_at_epoch": 2}, {"max_epochs": 2}, "calibrate_at_epoch=2 never comes: max_epochs=2"),
        ({"calibrate_at_epoch": 3}, {"max_epochs": 9, "max_steps": 2}, "max_epochs=9, max_steps=2 ends the fit before"),
        ({}, {"max_epochs": 1}, "max_epochs=1 leaves no epoch to train in float.*calibrated untrained"),
    ],
)
def test_an_epoch_that_never_comes(tmp_path: Path, arguments: dict, settings: dict, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, QuantizationLifecycle(**arguments), limit_train_batches=1, **settings)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"calibrate_at_epoch": 0}, {"max_epochs": 1}),
        ({"calibrate_at_epoch": 1}, {"max_epochs": 2}),
        ({}, {"max_epochs": 2}),
        ({"qat": False}, {"max_epochs": 1}),
        ({}, {"fast_dev_run": True}),
    ],
)
def test_epochs_that_come_are_not_spoken_of(
    tmp_path: Path, arguments: dict, settings: dict, recwarn: pytest.WarningsRecorder
) -> None:
    fit(tmp_path, QuantizationLifecycle(**arguments), limit_train_batches=1, **settings)
    assert not [w for w in recwarn if str(w.message).startswith("qgru: ") and "epoch" in str(w.message)]


class Lines(logging.Handler):
    """What Lightning logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, logger = Lines(), rank_zero.log
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


class Mixed(Model):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.teacher = nn.GRUCell(3, 4), nn.ModuleDict({"gru": nn.GRU(3, 4)})
        self.scripted = torch.jit.script(nn.GRU(3, 4))


def test_one_line_says_what_is_quantized_and_one_by_which_kernels(tmp_path: Path, lines: list[str]) -> None:
    model = fit(tmp_path, QuantizationLifecycle(exclude=["teacher.*"]), model=Mixed, max_epochs=2)
    own = [line for line in lines if line.startswith("qgru: ")]
    assert own[0] == (
        "qgru: to be quantized: gru; in float stay cell (nn.GRUCell), teacher.gru (excluded), scripted (scripted GRU)"
    )
    serving = backends.named("cpu")
    assert serving.why_unavailable() or own[1] == (
        f"qgru: quantized layers run on the cpu kernels ({serving.describe()})"
    )
    assert sum("teacher.gru" in line for line in lines) == 1
    assert type(model.teacher["gru"]) is nn.GRU and model.gru.is_calibrated()


def test_kernels_that_are_missing_are_named(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(backends.named("cpu")), "why_unavailable", lambda self: "they were not built; build them")
    fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), max_epochs=1)
    assert any("reference kernels (slowly, for the cpu kernels can't: they were not built; build" in x for x in lines)
