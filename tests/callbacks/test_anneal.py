"""Learning rates fall from calibration on, whatever the trainer counts and the optimizers and schedulers are."""

from __future__ import annotations

import copy
import pickle
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD, Optimizer, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from qgru.callbacks import QAT, QuantizationLifecycle
from qgru.callbacks import qat as qat_module
from qgru.report.table import read_csv

from .models import MODELS, PACKAGES, Model, assert_same, calibrated, dataset, fit, state, trainer
from .recording import Manual, Scheduled, cosine, expected


@pytest.mark.parametrize(
    ("settings", "before", "total"),
    [
        ({}, 8, 8),
        ({"precision": "bf16-mixed"}, 8, 8),
        ({"max_epochs": -1, "max_steps": 14}, 8, 6),
        ({"max_steps": 14}, 8, 6),
        ({"max_steps": 99}, 8, 8),
        ({"accumulate_grad_batches": 2}, 4, 4),
        ({"accumulate_grad_batches": 3}, 4, 4),
        ({"accumulate_grad_batches": 3, "max_steps": 7}, 4, 3),
        ({"limit_train_batches": 3}, 6, 6),
        ({"fast_dev_run": 3}, 0, 3),
    ],
    ids=str,
)
def test_rates_fall_to_the_fits_last_step(tmp_path: Path, settings: dict, before: int, total: int) -> None:
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=2), model=Scheduled, **settings)
    assert model.optimizer.used == expected(total, before)
    assert [group["lr"] for group in model.optimizer.param_groups] == [0.01, 0.004]


def test_modules_that_come_calibrated_anneal_over_the_whole_fit(tmp_path: Path) -> None:
    for callback in (QuantizationLifecycle(calibrate_at_epoch=2), QAT()):
        model = fit(tmp_path, callback, model=calibrated(Scheduled), max_epochs=2)
        assert model.optimizer.used == expected(8, before=0)


def test_scale(tmp_path: Path) -> None:
    for is_annealed in (False, True):
        lifecycle = QuantizationLifecycle(calibrate_at_epoch=1, anneal=is_annealed, qat_learning_rate_scale=3.0)
        used = fit(tmp_path, lifecycle, model=Scheduled, max_epochs=2).optimizer.used
        factors = [3 * (cosine(step, 4) if is_annealed else 1) for step in range(4)]
        assert used == [[0.01, 0.004]] * 4 + [pytest.approx([0.01 * f, 0.004 * f], rel=1e-9) for f in factors]


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9), "step"),
        (lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 3), "epoch"),
        (lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=16), "step"),
        (lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0), "epoch"),
    ],
    ids=["exponential", "cosine", "one cycle", "plateau"],
)
def test_schedulers_and_monitors_see_the_schedule_alone(tmp_path: Path, schedule: Any, interval: str) -> None:
    def run(name: str, **arguments: Any) -> tuple[Scheduled, list[str]]:
        monitor, logger = LearningRateMonitor("step"), CSVLogger(tmp_path / name)
        lifecycle = QuantizationLifecycle(calibrate_at_epoch=2, **arguments)
        model = Scheduled(schedule, interval)
        fit(tmp_path, lifecycle, monitor, model=model, logger=logger, log_every_n_steps=1)
        rows = read_csv(Path(logger.log_dir) / "metrics.csv")
        return model, [row["lr-Recording/pg1"] for row in rows if row["lr-Recording/pg1"]]

    (plain, seen), (annealed, seen_too) = run("plain", anneal=False), run("annealed")
    assert seen_too == seen and len(seen) == 16 and len(set(seen)) > 2
    own = [[group["lr"] for group in model.optimizer.param_groups] for model in (plain, annealed)]
    assert own[0] == own[1]
    factors = [1.0] * 8 + [cosine(step, 8) for step in range(8)]
    products = [[rate * f for rate in rates] for rates, f in zip(plain.optimizer.used, factors, strict=True)]
    assert annealed.optimizer.used == [pytest.approx(rates, rel=1e-9) for rates in products]


def test_effective_rates_are_logged(tmp_path: Path, package: Any) -> None:
    def logged(model: Any, **settings: Any) -> dict[str, list[Any]]:
        logger = package.loggers.CSVLogger(tmp_path)
        fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=2), model=model, logger=logger, **settings)
        rows = read_csv(Path(logger.log_dir) / "metrics.csv")
        names = [name for name in rows[0] if name.startswith("qat/")]
        return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in names}

    rates = {step: 0.01 * cosine(step - 8, 8) for step in range(8, 16)}
    every = [(step, pytest.approx(rate)) for step, rate in rates.items()]
    assert logged(MODELS[package](), log_every_n_steps=1) == {"qat/learning_rate": every}
    assert logged(MODELS[package](), log_every_n_steps=4) == {"qat/learning_rate": [every[3], every[7]]}
    if package is PACKAGES[0]:
        assert logged(Scheduled(), log_every_n_steps=1) == {
            "qat/learning_rate/0": every,
            "qat/learning_rate/1": [(step, pytest.approx(0.4 * rate)) for step, rate in rates.items()],
        }


def test_manual_optimization_counts_batches(tmp_path: Path) -> None:
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), model=Manual, max_epochs=3)
    factors = [1.0] * 4 + [cosine(batch, 8) for batch in range(8)]
    assert [rate for (rate,) in model.both[0].used] == pytest.approx([0.01 * f for f in factors])
    assert [rate for (rate,) in model.both[1].used] == pytest.approx([0.004 * f for f in factors[::2]])


def test_manual_optimization_under_max_steps(tmp_path: Path) -> None:
    """There it is steps of either optimizer that end the fit: 6 an epoch, here 6 before and 9 after calibration."""
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1)
    model = fit(tmp_path, lifecycle, model=Manual, max_epochs=-1, max_steps=15)
    begun = [0, 2, 3, 5, 6, 8]  # the steps that were taken when a batch began
    assert [rate for (rate,) in model.both[0].used[4:]] == pytest.approx([0.01 * cosine(step, 9) for step in begun])


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([dataset()[index] for index in range(24)])


def test_data_without_a_length_anneals_an_epoch_at_a_time(tmp_path: Path) -> None:
    model = Scheduled()
    data = DataLoader(Stream(), 6)
    trainer(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), max_epochs=4).fit(model, data)
    factors = [1.0] * 4 + [cosine(epoch, 3) for epoch in range(3) for _ in range(4)]
    assert model.optimizer.used == [pytest.approx([0.01 * f, 0.004 * f]) for f in factors]


class Stop(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(qat_module, "rank_zero_info", said.append)
    return said


@pytest.mark.parametrize(
    ("arguments", "settings", "line"),
    [
        ({}, {}, "; learning rates fall along a cosine to 1 % over 12 steps"),
        ({}, {"max_steps": 9}, "; learning rates fall along a cosine to 1 % over 5 steps"),
        ({"anneal": False}, {}, ""),
        ({"anneal": False, "qat_learning_rate_scale": 0.5}, {}, "; learning rates are 0.5 times the schedule's"),
        (
            {"qat_learning_rate_scale": 3},
            {"accumulate_grad_batches": 2},
            "; learning rates are 3 times the schedule's, and fall along a cosine to 1 % over 6 steps",
        ),
        (
            {},
            {"max_epochs": -1},
            "; learning rates do not fall: neither max_epochs nor max_steps says when the fit ends",
        ),
    ],
    ids=str,
)
def test_the_stages_line_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict, settings: dict, line: str
) -> None:
    said = lines(monkeypatch)
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1, **arguments)
    model = fit(tmp_path, lifecycle, Stop(3), model=Scheduled, **settings)
    assert said == ["qgru: quantization-aware training from epoch 1 on" + line]
    if settings.get("max_epochs") == -1:
        assert model.optimizer.used == [[0.01, 0.004]] * 16


def test_the_line_of_a_manual_fit_names_both_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch)
    fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), model=Manual, max_epochs=3, max_steps=50)
    assert said[0].endswith("over 8 batches or 44 steps")


def test_off_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook on the optimizer, no column in the log, and the steps that a run without the code takes."""

    def run(name: str) -> tuple[Scheduled, str]:
        class Look(Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                (optimizer,) = trainer.optimizers
                assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks

        logger = CSVLogger(tmp_path / name)
        lifecycle = QuantizationLifecycle(calibrate_at_epoch=1, anneal=False)
        model = fit(tmp_path, lifecycle, Look(), model=Scheduled, logger=logger, log_every_n_steps=1, max_epochs=2)
        return model, (Path(logger.log_dir) / "metrics.csv").read_text()

    model, metrics = run("off")
    assert model.optimizer.used == [[0.01, 0.004]] * 8 and "qat/" not in metrics
    monkeypatch.setattr(QAT, "on_train_batch_start", lambda *_: None)
    without, same_metrics = run("without")
    assert_same(state(model), state(without))
    assert metrics == same_metrics


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(tmp_path: Path, fails: bool) -> None:
    class Failing(Scheduled):
        def on_train_batch_end(self, *_: Any) -> None:
            if fails and self.trainer.current_epoch == 2:
                raise KeyError("fails")

    model = Failing()
    try:
        fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), model=model)
    except KeyError:
        assert fails
    assert len(model.optimizer.used) == (9 if fails else 16)
    assert not model.optimizer._optimizer_step_pre_hooks and not model.optimizer._optimizer_step_post_hooks
    assert [group["lr"] for group in model.optimizer.param_groups] == [0.01, 0.004]


def test_optimizers_without_hooks_are_named(tmp_path: Path) -> None:
    """Lightning takes whatever has these."""

    class Wrapper:
        def __init__(self, optimizer: Optimizer) -> None:
            self.step, self.zero_grad = optimizer.step, optimizer.zero_grad
            self.state_dict, self.load_state_dict = optimizer.state_dict, optimizer.load_state_dict
            self.defaults, self.param_groups, self.state = optimizer.defaults, optimizer.param_groups, optimizer.state

    class Wrapped(Model):
        def configure_optimizers(self) -> Any:
            return Wrapper(SGD(self.parameters(), lr=0.01))

    with pytest.warns(UserWarning, match="stays what its schedule says: Wrapper has no hooks") as warned:
        model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), model=Wrapped, max_epochs=1)
    assert len([w for w in warned if "schedule says" in str(w.message)]) == 1 and model.gru.is_calibrated()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"anneal": anneal}, f"anneal is {anneal!r}; expected True or False") for anneal in ("yes", 1, None)),
        *(
            ({"qat_learning_rate_scale": scale}, f"learning_rate_scale is {scale!r}; expected a finite number above 0")
            for scale in (0, -1.0, nan, inf, "3", None, True)
        ),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationLifecycle(**arguments)


def test_pickled_as_given(tmp_path: Path) -> None:
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1, anneal=False, qat_learning_rate_scale=2.0)
    for kept in (pickle.loads(pickle.dumps(lifecycle)), copy.deepcopy(lifecycle)):
        used = fit(tmp_path, kept, model=Scheduled, max_epochs=2).optimizer.used
        assert used == [[0.01, 0.004]] * 4 + [[0.02, 0.008]] * 4
