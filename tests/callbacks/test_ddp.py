"""Two processes finalize the grids of one process that saw all the data, and agree from the first step on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qgru
from qgru.callbacks.ranks import exclude_from_broadcast, include_in_broadcast
from qgru.stages import start_qat_epoch

from . import ddp_failing_run, ddp_run
from .models import Model, calibrated

ROOT = Path(__file__).parents[2]


def run_two(folder: Path, *start: Path, package: str = "lightning.pytorch") -> list[dict[str, Any]]:
    """Run the script on two processes; returns what each rank recorded."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PACKAGE": package}
    command = [sys.executable, "-W", "ignore", ddp_run.__file__, "2", str(folder), *map(str, start)]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def assert_integers(records: list[dict[str, Any]], expected: dict[str, torch.Tensor]) -> None:
    for rank, record in enumerate(records):
        assert record["quantized"], rank
        assert all(torch.equal(record["buffers"][name], value) for name, value in expected.items()), rank


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    records = run_two(tmp_path / "two")
    (tmp_path / "one").mkdir()
    ddp_run.main(1, tmp_path / "one")
    assert_integers(records, torch.load(tmp_path / "one" / "rank0.pt")["buffers"])
    assert (tmp_path / "two" / "files" / "quant_params.json").is_file()
    saved = torch.load(tmp_path / "two" / "last.ckpt", weights_only=True)["qgru_lifecycle"]["random_states"]
    assert len(saved) == 2
    # DDP's broadcast before every forward would have each rank read its state again, from the device on a GPU.
    assert [record["broadcast"] for record in records] == [["own"], ["own"]]


@pytest.mark.slow
def test_ranks_that_differ_become_rank_zero(tmp_path: Path) -> None:
    model = calibrated()
    model.register_buffer("own", torch.zeros(1))
    start_qat_epoch(model)
    torch.save(model.state_dict(), tmp_path / "start.pt")
    records = run_two(tmp_path / "two", tmp_path / "start.pt", package="pytorch_lightning")
    assert_integers(records, dict(model.gru.named_buffers()))


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_call_that_fails_on_one_rank_ends_the_fit_on_both(tmp_path: Path, epoch: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", ddp_failing_run.__file__, str(tmp_path), str(epoch)]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    zero, one = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert one.startswith("0 steps: calling Model on a training batch (list) as forward_fn(module, batch) failed with")
    assert zero == f"0 steps: rank 1 failed: {one.removeprefix('0 steps: ')}"


def test_what_ddp_ignores_is_added_to_and_given_back() -> None:
    name = "_ddp_params_and_buffers_to_ignore"
    model, alone = qgru.convert(Model()), qgru.convert(nn.GRU(3, 4))
    exclude_from_broadcast(model), exclude_from_broadcast(alone)
    assert set(getattr(model, name)) == {key for key, _ in model.named_buffers()}
    assert set(getattr(alone, name)) == {key for key, _ in alone.named_buffers()}
    include_in_broadcast(model), include_in_broadcast(alone)
    assert not hasattr(model, name) and not hasattr(alone, name)
    setattr(model, name, ["head.bias"])
    exclude_from_broadcast(model)
    assert len(getattr(model, name)) == 4
    include_in_broadcast(model)
    assert getattr(model, name) == ["head.bias"]
