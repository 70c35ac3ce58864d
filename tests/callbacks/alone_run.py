"""A whole fit with one of Lightning's packages, the other one being absent; a script, since it hides that first.

Usage: alone_run.py <package to hide> <folder>
"""

from __future__ import annotations

import sys
from pathlib import Path

HIDDEN, FOLDER = sys.argv[1], Path(sys.argv[2])
sys.modules[HIDDEN] = None  # importing it raises ModuleNotFoundError
if HIDDEN == "pytorch_lightning":
    import lightning.pytorch as package
else:
    import pytorch_lightning as package

import torch  # noqa: E402
from torch import nn  # noqa: E402

from qgru.callbacks import QuantizationLifecycle  # noqa: E402
from qgru.callbacks.checkpoint_io import WholeFileCheckpointIO  # noqa: E402
from qgru.callbacks.packages import PACKAGES  # noqa: E402
from qgru.report import ResumableCSVLogger, compare  # noqa: E402


class Data(package.LightningDataModule):
    def train_dataloader(self) -> torch.utils.data.DataLoader:
        x = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum((1, 2))), 6)

    test_dataloader = val_dataloader = train_dataloader


class Model(package.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0][:, -1].sum(-1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("loss", self.training_step(batch, index))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


best = package.callbacks.ModelCheckpoint(FOLDER, monitor="loss")
trainer = package.Trainer(
    max_epochs=3,
    accelerator="cpu",
    default_root_dir=FOLDER,
    logger=ResumableCSVLogger(str(FOLDER)),
    plugins=[WholeFileCheckpointIO()],
    callbacks=[package.callbacks.EarlyStopping("loss"), QuantizationLifecycle(export_dir=str(FOLDER)), best],
)
model, data = Model(), Data()
trainer.fit(model, datamodule=data)
assert (package.__name__,) == PACKAGES and model.gru.is_calibrated() and model.gru.use_quantization
rows = compare(trainer, model, data, FOLDER)
assert [row.stage for row in rows] == ["float", "ptq", "qat", "onnx"] and rows[-1].differing_integers == 0
