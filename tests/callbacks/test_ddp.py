"""Two processes finalize the grids of one process that saw all the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from . import ddp_run

ROOT = Path(__file__).parents[2]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", ddp_run.__file__, "2", str(two)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    ddp_run.main(1, one)
    expected = torch.load(one / "rank0.pt")
    assert expected["gru.quant_flags"].tolist() == [1, 0, 1]
    for rank in (0, 1):
        buffers = torch.load(two / f"rank{rank}.pt")
        assert all(torch.equal(buffers[name], value) for name, value in expected.items()), rank
    assert (two / "files" / "quant_params.json").is_file()
    saved = torch.load(two / "last.ckpt", weights_only=True)["qgru_lifecycle"]["random_states"]
    assert len(saved) == 2
