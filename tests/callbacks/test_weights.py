"""The best checkpoint is read without running what is in it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import torch

from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, Model, assert_same, fit


class Code:
    """Touches a file where it is unpickled by Python's own rules."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class DictOfItsOwn(dict):
    pass


def run(folder: Path, model: Any = Model, package: Any = lightning.pytorch, **kwargs: Any) -> tuple[Any, Any]:
    best = package.callbacks.ModelCheckpoint(folder / "best", "{epoch}", monitor="val_loss", mode="max", save_last=True)
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1, export_dir=str(folder / "files"))
    return fit(folder, lifecycle, best, model=model, **kwargs), best


@pytest.mark.parametrize("place", ["elsewhere", "best"])
def test_code_in_a_file_that_a_resumed_checkpoint_names_does_not_run(tmp_path: Path, place: str) -> None:
    """Also where the file lies in the run's own folder."""
    run(tmp_path, max_epochs=2)
    last = tmp_path / "best" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    evil, touched = tmp_path / place / "evil.ckpt", tmp_path / "touched"
    evil.parent.mkdir(exist_ok=True)
    torch.save({**checkpoint, "hyper_parameters": {"x": Code(touched)}}, evil)
    (states,) = [value for key, value in checkpoint["callbacks"].items() if "ModelCheckpoint" in key]
    score = torch.tensor(1e9)
    states.update(best_model_path=str(evil), kth_best_model_path=str(evil), best_k_models={str(evil): score})
    states.update(best_model_score=score, kth_value=score)
    checkpoint["qgru_lifecycle"]["has_stale_scores"] = False
    torch.save(checkpoint, last)
    _, best = run(tmp_path, max_epochs=3, ckpt_path=last)
    assert best.best_model_path == str(evil) and not touched.exists()
    assert (tmp_path / "files" / "qat.ckpt").is_file()
    torch.load(evil, weights_only=False)
    assert touched.exists(), "the file would have run its code"


def typed(kept: Any, package: Any = lightning.pytorch) -> Any:
    """A model whose checkpoints hold objects that torch does not load as weights."""

    class Typed(MODELS[package]):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["kept"] = kept

    return Typed()


@pytest.mark.parametrize("kept", [SimpleNamespace(a=[1]), Path("x"), {"type": Model}], ids=lambda kept: str(type(kept)))
def test_best_weights_are_exported_whatever_hyperparameters_stand_beside_them(
    tmp_path: Path, package: Any, kept: Any
) -> None:
    model = typed(kept, package)
    _, best = run(tmp_path, model, package)
    saved = torch.load(best.best_model_path, weights_only=False)
    assert type(saved["kept"]) is type(kept)
    exported = torch.load(tmp_path / "files" / "qat.ckpt", weights_only=False)["state_dict"]
    assert_same(exported, saved["state_dict"])
    assert not torch.equal(exported["gru.weight_hh_l0"], model.gru.weight_hh_l0), "the last weights"


def test_what_cannot_be_read_so_leads_to_the_last_weights_and_says_it(tmp_path: Path) -> None:
    model = typed(DictOfItsOwn(a=1))
    with pytest.warns(
        UserWarning, match="exporting the last weights; the best checkpoint .*epoch=.* can't serve.*DictOfItsOwn"
    ):
        run(tmp_path, model)
    exported = torch.load(tmp_path / "files" / "qat.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(exported["gru.weight_hh_l0"], model.gru.weight_hh_l0)
