"""What the callbacks use of Lightning's private names is still there, and still means what it did."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from qgru.callbacks import lightning_private
from qgru.callbacks.packages import Callback

from .models import MODELS, PACKAGES, fit


def owners(package: Any) -> dict[str, Any]:
    trainer = package.Trainer(logger=False, barebones=True)
    return {
        "_use_buffers": package.callbacks.WeightAveraging(),
        "_average_model": package.callbacks.WeightAveraging(),
        "_data_fetcher": trainer.fit_loop,
        "_on_before_batch_transfer": package.LightningModule(),
        "_checkpoint_connector": trainer,
        "_compiler_ctx": package.LightningModule(),
    }


@pytest.mark.parametrize("name", owners(PACKAGES[0]))
def test_the_name_is_there(name: str, package: Any) -> None:
    owner = owners(package)[name]
    assert hasattr(owner, name), (
        f"{package.__name__} {package.__version__} has no {type(owner).__name__}.{name}; see "
        f"{lightning_private.__file__}"
    )


def test_no_other_module_uses_them() -> None:
    folder = Path(lightning_private.__file__).parent
    sources = {path.name: path.read_text() for path in folder.glob("*.py") if path.name != "lightning_private.py"}
    assert [(file, name) for file, text in sources.items() for name in owners(PACKAGES[0]) if f".{name}" in text] == []


class Look(Callback):
    """Calls each function where the callbacks do."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = lightning_private.before_batch_transfer(pl_module, batch)
        self.fetcher = lightning_private.data_fetcher(trainer)
        self.checkpoint = lightning_private.weights_checkpoint(trainer)


def test_what_they_give(tmp_path: Path, package: Any) -> None:
    class Doubling(MODELS[package]):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [tensor * 2 for tensor in batch]

    WeightAveraging = package.callbacks.WeightAveraging
    look, averaging = Look(), WeightAveraging(use_buffers=False)
    assert lightning_private.averaged_model(averaging) is None
    model = fit(tmp_path, look, averaging, model=Doubling(), max_epochs=1, limit_train_batches=1)
    assert not lightning_private.averages_buffers(averaging) and lightning_private.averages_buffers(WeightAveraging())
    assert type(lightning_private.averaged_model(averaging)) is Doubling
    assert len(look.batch) == 2 and look.fetcher is not None
    assert look.checkpoint.keys() >= {"state_dict", "hyper_parameters", "epoch"} and "callbacks" not in look.checkpoint
    assert look.checkpoint["state_dict"].keys() == model.state_dict().keys()


def test_uncompiled(package: Any) -> None:
    model = MODELS[package]()
    compiled = import_module(f"{package.__name__}.utilities.compile").from_compiled(
        torch.compile(model, backend="eager")
    )
    forward, context = compiled.forward, compiled._compiler_ctx
    with lightning_private.uncompiled(compiled):
        assert compiled._compiler_ctx is None and compiled.forward == context["original_forward"]
    assert compiled._compiler_ctx is context and compiled.forward is forward
    with lightning_private.uncompiled(MODELS[package]()) as nothing:
        assert nothing is None
