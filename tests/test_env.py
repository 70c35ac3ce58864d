"""The report of what is here."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import torch

from qgru import env
from qgru.ops.cpu import backend


def test_it_prints_versions_kernels_and_gpus() -> None:
    result = subprocess.run([sys.executable, "-m", "qgru.env"], capture_output=True, text=True, check=True)
    lines = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert lines["torch"] == torch.__version__ and lines["python"].startswith(sys.version.split()[0])
    assert all(f"{name} backend" in result.stdout for name in ("cpu", "cuda", "reference")) and "GPU" in lines


def test_it_says_what_is_missing() -> None:
    with (
        mock.patch.object(backend, "_kernels", None),
        mock.patch.object(env, "version", side_effect=env.PackageNotFoundError),
    ):
        found = dict(env.report())
    assert found["cpu backend"].startswith("they were not built") and found["onnxruntime"] == "not installed"
