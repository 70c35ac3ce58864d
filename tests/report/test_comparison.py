import csv

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from qgru import QuantGRU, convert
from qgru.callbacks import QuantizationLifecycle
from qgru.report import compare, read_rows
from qgru.report.comparison import weight_bytes
from qgru.targets import cost_table
from tests.report.toy import ToyData, ToyModel

FLOAT_BYTES, INT8_BYTES = 4 * (72 + 192 + 24 + 24 + 18), 72 + 192 + 24 + 24 + 4 * 18


def trainer(folder, *callbacks, **kwargs) -> lightning.Trainer:
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return lightning.Trainer(**{**settings, **quiet, **kwargs}, callbacks=list(callbacks))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished quantized run: trainer, model, data, folder, rows."""
    folder = tmp_path_factory.mktemp("run")
    lightning.seed_everything(3)
    logger = CSVLogger(folder, "metrics")
    fitted = trainer(folder, QuantizationLifecycle("int8", export_dir=str(folder)), logger=logger)
    model, data = ToyModel(), ToyData()
    fitted.fit(model, datamodule=data)
    rows = compare(fitted, model, data, folder)
    return fitted, model, data, folder, rows


def accuracy(model: nn.Module) -> float:
    """By hand: over the whole test set, whatever the batches."""
    (x, y) = ToyData().test_dataloader().dataset.tensors
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).double().mean().item()


def test_every_stage_scores_what_its_checkpoint_scores(run):
    *_, folder, rows = run
    assert [row.stage for row in rows] == ["majority", "float", "ptq", "qat", "onnx"]
    assert {row.metric for row in rows} == {"test/accuracy"}
    for row in rows[1:4]:
        state = torch.load(folder / f"{row.stage}.ckpt", weights_only=True)["state_dict"]
        model = ToyModel()
        if row.stage == "float":
            state = {name: value for name, value in state.items() if "quant_" not in name}
        else:
            convert(model)
        model.load_state_dict(state)
        assert row.value == pytest.approx(accuracy(model), abs=1e-6), row.stage
    assert rows[-1].value == rows[-2].value


def test_bytes_and_differing_integers(run):
    *_, rows = run
    assert [row.weight_bytes for row in rows] == [None, FLOAT_BYTES, INT8_BYTES, INT8_BYTES, INT8_BYTES]
    assert [row.differing_integers for row in rows] == [None, None, None, None, 0]


def test_what_is_quantized_has_a_cost(run):
    """The reference's own is 1."""
    *_, rows = run
    assert [row.cost for row in rows] == [None, None, 1.0, 1.0, 1.0]


def test_what_a_target_takes_is_said_under_the_table(run, tmp_path, capsys):
    _, model, data, *_ = run
    said = []
    for callbacks in ([], [QuantizationLifecycle("int8", target="npu_8x8")]):
        compare(trainer(tmp_path, *callbacks), model, data, tmp_path)
        said.append([line for line in capsys.readouterr().out.splitlines() if "npu_8x8" in line])
    # 8 units, 3 inputs: three gates of products with both, and three products of two values a unit
    assert said == [[], [f"npu_8x8: {cost_table(model, 'npu_8x8')}"]]
    assert said[1][0].endswith(f"multiplications a step: {3 * 8 * (3 + 8) + 3 * 8} of 8x8 bits")


def test_the_folder_holds_the_rows_and_the_pictures(run):
    *_, folder, rows = run
    assert read_rows(folder / "results.csv") == rows
    assert (folder / "distributions-gru-l0.png").is_file()


def test_the_model_and_the_loggers_are_left_alone(run):
    fitted, model, _, folder, _ = run
    assert model.gru.use_quantization and model.gru.has_observations() and "forward" not in vars(model)
    assert len(fitted.loggers) == 1
    with next((folder / "metrics").rglob("metrics.csv")).open() as file:
        assert not any(name.startswith("test/") for name in csv.DictReader(file).fieldnames)


def test_another_models_file_differs(run, tmp_path):
    fitted, model, data, folder, _ = run
    for name in ("float.ckpt", "ptq.ckpt", "qat.ckpt"):
        (tmp_path / name).symlink_to(folder / name)
    other = ToyModel()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "quant_" not in k})
    with torch.no_grad():
        other.gru.weight_hh_l0[3, 2] += 0.25
    other_folder = tmp_path / "other"
    lifecycle = QuantizationLifecycle("int8", calibrate_at_epoch=0, qat=False, export_dir=str(other_folder))
    trainer(other_folder, lifecycle).fit(other, datamodule=data)
    (tmp_path / "model_qdq.onnx").symlink_to(other_folder / "model_qdq.onnx")
    assert compare(fitted, model, data, tmp_path)[-1].differing_integers > 0


def test_a_float_run_has_a_float_stage_whatever_an_earlier_run_left_behind(run, tmp_path):
    *_, folder, _ = run
    (tmp_path / "qat.ckpt").symlink_to(folder / "qat.ckpt")
    model, data, fitted = ToyModel(), ToyData(), trainer(tmp_path)
    fitted.fit(model, datamodule=data)
    rows = compare(fitted, model, data, tmp_path)
    assert [(row.stage, row.weight_bytes) for row in rows] == [("majority", None), ("float", FLOAT_BYTES)]
    assert rows[1].value == pytest.approx(accuracy(model), abs=1e-6)
    assert type(model.gru) is nn.GRU and list(tmp_path.glob("*.png")) == []


def test_weights_are_packed_tensor_by_tensor_at_their_own_widths():
    gru = QuantGRU(1, 1, num_layers=2, bias=False)  # four tensors of three values
    gru.load_bitwidth_config({"operator_config": {"weight.W": {"bitwidth": 3}, "weight.R": {"bitwidth": 9}}})
    assert weight_bytes(gru) == 4 * 3 * 4
    gru.use_quantization = True
    assert weight_bytes(gru) == 2 * (2 + 4)
    gru.adjust_quant_config("W", bitwidth=16, layer=1)
    assert weight_bytes(gru) == 2 + 4 + 6 + 4
    gru.load_bitwidth_config({"default_config": {"disable_quantization": True}})
    assert weight_bytes(gru) == 4 * 3 * 4
