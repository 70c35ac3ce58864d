"""A Lightning project as users have them: its model says `nn.GRU`, and nothing about quantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import qgru
from qgru.stages import calibrate, finalize

PACKAGES = (lightning.pytorch, pytorch_lightning)


def _model(package: Any) -> Any:
    class Model(package.LightningModule):
        """Sequence to one value; dropout makes every training step depend on torch's random state."""

        def __init__(self, hidden_size: int = 5, dropout: float = 0.3, **gru: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.gru = nn.GRU(3, hidden_size, batch_first=True, **gru)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(hidden_size * (2 if self.gru.bidirectional else 1), 1)
            self.losses: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.dropout(self.gru(x)[0][:, -1]))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.mse_loss(self(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

        test_step = validation_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    Model.__qualname__ = "Model"
    return Model


MODELS = {package: _model(package) for package in PACKAGES}
"""The same class in each of Lightning's packages."""

Model = MODELS[lightning.pytorch]


class EpochSampler(Sampler[int]):
    """A shuffle that depends on the seed and the epoch alone."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def dataset(size: int = 24, seed: int = 7) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, 3, generator=generator)
    return TensorDataset(x, x[:, :, :1].cumsum(1)[:, -1].tanh())


def loader(size: int = 24, seed: int = 7, batch_size: int = 6, **kwargs: Any) -> DataLoader:
    return DataLoader(dataset(size, seed), batch_size, **kwargs)


def call(module: nn.Module, batch: Any) -> None:
    """A `forward_fn` that a configuration names."""
    module(batch[0])


def trainer(folder: Path, *callbacks: Any, package: Any = lightning.pytorch, **kwargs: Any) -> Any:
    """A quiet trainer on the CPU; it has no logger, and a checkpoint callback only where one is given."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 4,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, package.callbacks.Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return package.Trainer(**{**settings, **kwargs})


def fit(folder: Path, *callbacks: Any, model: Any = Model, ckpt_path: Any = None, **kwargs: Any) -> Any:
    """Seed, build (where `model` is not a module yet), train with its own package; returns the model."""
    lightning.pytorch.seed_everything(3, verbose=False)
    model = model if isinstance(model, nn.Module) else model()
    loaders = (loader(sampler=EpochSampler(24)), loader(12, seed=8))
    trainer(folder, *callbacks, package=package_of(model), **kwargs).fit(model, *loaders, ckpt_path=ckpt_path)
    return model


def package_of(model: nn.Module) -> Any:
    (package,) = [p for p in PACKAGES if isinstance(getattr(model, "_orig_mod", model), p.LightningModule)]
    return package


def calibrated(model: Any = Model) -> Any:
    """A converted model with grids, not switched to them yet."""
    model = qgru.convert(model())
    calibrate(model, loader())
    finalize(model)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """To the bit, integers and parameters."""
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing
