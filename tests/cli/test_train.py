"""train.py end to end: one real recipe as users start it, the rest on a small one in this process."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

import train
from qgru import load_config
from qgru.report import read_rows

ROOT = Path(__file__).parents[2]
TOY = ["recipe=toy", f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]"]
BITS = "quant.operator_config.gate.z_out.bitwidth"


class Probe(Callback):
    """Keeps what the jobs return, which is what a sweeper would optimize."""

    returned: list[Any] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self.returned.append(job_return.return_value)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    train.main()


@pytest.fixture(scope="module")
def speakers(tmp_path_factory) -> Path:
    """The folder of `python train.py +quant=int8_mixed`, cut short."""
    folder = tmp_path_factory.mktemp("speakers")
    short = ["trainer.max_epochs=2", "+trainer.limit_train_batches=2", "+trainer.limit_test_batches=2"]
    command = [sys.executable, "train.py", "+quant=int8_mixed", *short, f"hydra.run.dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_main_job_leaves_everything_in_its_folder(speakers):
    expected = {
        *("results.csv", "bitwidth_config.json", "quant_params.json", "model_qdq.onnx", "distributions-gru-l0.png"),
        *("float.ckpt", "ptq.ckpt", "qat.ckpt", "checkpoints/last.ckpt", "metrics/version_0/metrics.csv"),
        ".hydra/overrides.yaml",
    }
    assert {name for name in expected if not (speakers / name).is_file()} == set()
    assert load_config(speakers / "bitwidth_config.json") == load_config("int8_mixed")
    assert json.loads((speakers / "quant_params.json").read_text())["model_info"]["hidden_size"] == 64


def test_the_main_jobs_table_has_every_stage_and_no_differing_integer(speakers):
    header = (speakers / "results.csv").read_text().splitlines()[0]
    assert header == "stage,metric,value,weight_bytes,differing_integers,cost"
    rows = read_rows(speakers / "results.csv")
    assert [row.stage for row in rows] == ["majority", "float", "ptq", "qat", "onnx"]
    assert {row.metric for row in rows} == {"test/accuracy"}
    parameters, head = 3 * 64 * (12 + 64 + 2), 9 * (64 + 1)
    assert [row.weight_bytes for row in rows[1:]] == [4 * (parameters + head), *[parameters + 4 * head] * 3]
    assert rows[-1].differing_integers == 0 and rows[-1].value == rows[-2].value
    assert [row.cost for row in rows[:2]] == [None, None] and len({row.cost for row in rows[2:]}) == 1
    assert 1.2 < rows[2].cost < 1.6, "the mixed preset has 16-bit sums and a tanh table of 1024 entries"


def test_no_flag_is_the_float_run(monkeypatch, tmp_path):
    run(monkeypatch, *TOY, f"hydra.run.dir={tmp_path}")
    assert [row.stage for row in read_rows(tmp_path / "results.csv")] == ["majority", "float"]
    assert not list(tmp_path.glob("*.ckpt")) and not list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_a_sweep_gathers_its_jobs_and_returns_the_metric(monkeypatch, tmp_path, capsys):
    Probe.returned.clear()
    probe = f"+hydra.callbacks.probe._target_={__name__}.Probe"
    run(monkeypatch, *TOY, "+quant=int8", f"{BITS}=3,8", f"hydra.sweep.dir={tmp_path}", probe, "--multirun")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row[BITS], row["seed"], row["stage"]) for row in rows] == [
        (job, bits, "1", stage)
        for job, bits in (("0", "3"), ("1", "8"))
        for stage in ("majority", "float", "ptq", "qat", "onnx")
    ]
    onnx = [row for row in rows if row["stage"] == "onnx"]
    assert Probe.returned == [float(row["value"]) for row in onnx]
    assert [row["differing_integers"] for row in onnx] == ["0", "0"]
    for job, bits in (("0", 3), ("1", 8)):
        assert load_config(tmp_path / job / "bitwidth_config.json").operators["gate.z_out"].bitwidth == bits
    assert f"{tmp_path}/results.csv: 2 jobs\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_resumed_in_its_folder_ends_with_the_same_integers(monkeypatch, tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    settings = [*TOY, "+quant=int8", "callbacks.quantization.calibrate_at_epoch=2"]
    run(monkeypatch, *settings, "trainer.max_epochs=4", f"hydra.run.dir={whole}")
    run(monkeypatch, *settings, "trainer.max_epochs=1", f"hydra.run.dir={halved}")
    (halved / "ptq.ckpt").unlink()  # the cut run was calibrated at its end; it is to be calibrated anew
    resume = f"ckpt_path={halved}/checkpoints/last.ckpt"
    run(monkeypatch, *settings, "trainer.max_epochs=4", f"hydra.run.dir={halved}", resume)
    assert (halved / "quant_params.json").read_text() == (whole / "quant_params.json").read_text()
    assert read_rows(halved / "results.csv") == read_rows(whole / "results.csv")
    assert [path.name for path in (halved / "metrics").iterdir()] == ["version_0"]


@pytest.mark.slow
def test_a_killed_and_resumed_run_leaves_the_files_of_a_whole_one(monkeypatch, tmp_path):
    """Byte for byte, the logged metrics too."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = [*TOY, "+quant=int8", "trainer.max_epochs=4", "trainer.log_every_n_steps=1"]
    settings += ["callbacks.quantization.calibrate_at_epoch=2"]
    run(monkeypatch, *settings, f"hydra.run.dir={whole}")
    kill = "+callbacks.kill={_target_:tests.callbacks.test_resume.Kill,epoch:3,batch:1}"
    with pytest.raises(SystemExit):
        run(monkeypatch, *settings, f"hydra.run.dir={killed}", kill)
    run(monkeypatch, *settings, f"hydra.run.dir={killed}", f"ckpt_path={killed}/checkpoints/last.ckpt")
    assert [path.name for path in (killed / "metrics").iterdir()] == ["version_0"]
    for name in ("metrics/version_0/metrics.csv", "quant_params.json", "model_qdq.onnx", "results.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_second_run_in_the_same_folder_logs_into_a_new_version(monkeypatch, tmp_path):
    for _ in range(2):
        run(monkeypatch, *TOY, f"hydra.run.dir={tmp_path}", "trainer.max_epochs=1")
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == ["version_0", "version_1"]


def test_a_preset_that_arrives_as_a_string_is_refused_with_the_fix(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nquant: int8_mixed\n")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--config-path", str(tmp_path), "--config-name", "mine", f"hydra.run.dir={tmp_path}/run")
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "+quant=int8_mixed" in message and "hydra.searchpath=[pkg://qgru.conf]" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("names", ["test/acuracy", "[test/accuracy,weight_bytes,test/acuracy]"])
def test_a_metric_that_no_test_logs_is_found_before_training(monkeypatch, tmp_path, capsys, names):
    with pytest.raises(SystemExit):
        run(monkeypatch, *TOY, f"optimized_metric={names}", f"hydra.run.dir={tmp_path}")
    message = capsys.readouterr().err
    assert "optimized_metric is 'test/acuracy'; expected what ToyModel's test logs: 'test/accuracy'" in message
    assert not (tmp_path / "metrics").exists() and not (tmp_path / "checkpoints").exists()


def test_looking_for_the_metric_leaves_the_run_as_it_was(monkeypatch, tmp_path):
    for name in ("looked", "blind"):
        run(monkeypatch, *TOY, "+quant=int8", f"hydra.run.dir={tmp_path / name}")
        monkeypatch.setattr(train, "check_metrics", lambda *_: None)
    for name in ("metrics/version_0/metrics.csv", "quant_params.json", "model_qdq.onnx", "results.csv"):
        assert (tmp_path / "looked" / name).read_bytes() == (tmp_path / "blind" / name).read_bytes(), name


def test_fast_dev_run_needs_no_plus(monkeypatch, tmp_path):
    run(monkeypatch, *TOY, "+quant=int8", "trainer.fast_dev_run=true", f"hydra.run.dir={tmp_path}")
    assert [row.stage for row in read_rows(tmp_path / "results.csv")] == ["majority", "float", "ptq", "qat", "onnx"]


def test_a_bit_width_file_in_a_presets_place(monkeypatch, tmp_path):
    config = {"operator_config": {"gate.z_out": {"bitwidth": 5, "is_unsigned": True}, "op.Rh_add_br": {"bitwidth": 9}}}
    (tmp_path / "mine.json").write_text(json.dumps({"GRU_config": config}))
    changed = "quant.operator_config.gate.r_out.bitwidth=6"
    short = ["trainer.fast_dev_run=true", f"hydra.run.dir={tmp_path}/run"]
    run(monkeypatch, *TOY, f"+quant={tmp_path}/mine.json", changed, *short)
    config["operator_config"]["gate.r_out"] = {"bitwidth": 6}
    assert load_config(tmp_path / "run" / "bitwidth_config.json") == load_config(config)


@pytest.mark.slow
def test_presets_that_share_a_float_stage_end_with_the_integers_of_their_own_run(monkeypatch, tmp_path):
    """What benchmarks/recipes.py builds on."""
    epochs = [*TOY, "trainer.max_epochs=3"]
    own, first, second = (tmp_path / name for name in ("own", "first", "second"))
    run(monkeypatch, *epochs, "+quant=w4a8", f"hydra.run.dir={own}")
    keep = f"{{_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:{first},filename:end,every_n_epochs:2}}"
    run(monkeypatch, *epochs, "+quant=int8", f"hydra.run.dir={first}", f"+callbacks.float_stage={keep}")
    run(monkeypatch, *epochs, "+quant=w4a8", f"hydra.run.dir={second}", f"ckpt_path={first}/end.ckpt")
    assert (second / "quant_params.json").read_text() == (own / "quant_params.json").read_text()
    assert (second / "quant_params.json").read_text() != (first / "quant_params.json").read_text()
    assert read_rows(second / "results.csv") == read_rows(own / "results.csv")
