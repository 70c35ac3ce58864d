"""`export_c`: a folder of C99 that computes a quantized model's integers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from qgru.convert import quantized_layers
from qgru.export.c99 import vectors
from qgru.export.c99.chain import Chain, chain_of
from qgru.export.c99.files import write
from qgru.export.c99.host import compare
from qgru.export.c99.linear import Head
from qgru.export.c99.program import Program, program
from qgru.export.c99.report import CReport
from qgru.files import put_in_place, shown
from qgru.gru import QuantGRU


def export_c(model: nn.Module, folder: str | Path, name: str = "model", args: Any = None) -> CReport:
    """Write a quantized model as C99: ``<name>.h``, ``<name>.c``, the kernels, vectors, and ``make test``.

    The program computes in integers alone, on the first layer's ``input.x`` and the last one's ``output.h``. Where a C
    compiler is found, the vectors are run through it before anything appears in the folder.

    Args:
        model: a calibrated `QuantGRU`, or a model whose quantized GRUs feed each other. An `nn.Linear` behind them goes
            along, quantized to 8-bit weights (one exponent a row), 32-bit biases and 16-bit outputs over all that a
            state can lead to; what else there is in the model does not, and the report says so. It is left as it was.
        folder: made where missing.
        name: of the program: what its functions and files are called after.
        args: example input of `model.forward`, a tensor or a tuple; the first row of it is among the vectors. None will
            do for a `QuantGRU`.

    Returns:
        The number of differing integers, and what the program costs.

    Raises:
        ValueError: where `name` can't be part of a name in C; naming the layer, where the GRUs are no chain, or where a
            grid has more bits than C's kernels take (16; biases 32).
        RuntimeError: where a layer is not calibrated, or the program does not compile.
        OSError: where the folder can't be written to.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(f"name is {shown(name)}; expected letters, digits and underscores, a letter first")
    if args is None and not isinstance(model, QuantGRU):
        raise ValueError(f"args is None; expected an example input of {type(model).__name__}.forward")
    job = _job(model, name, args)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        written = Path(temporary) / "c"
        written.mkdir()
        report = _write(job, written)
        put_in_place(written, folder)
    return replace(report, path=folder)


@dataclass(frozen=True)
class _Job:
    """What is to be written, and the vectors that prove it."""

    program: Program
    x: Tensor
    y: Tensor
    left_out: str
    logits_error: float | None


def _job(model: nn.Module, name: str, args: Any) -> _Job:
    if args is None:
        chain = Chain([("", model)], torch.empty(0), None, "")
    else:
        for gru in quantized_layers(model).values():
            gru.ensure_calibrated()
        chain = chain_of(model, args if isinstance(args, tuple) else (args,))
    grus = [gru for _, gru in chain.grus]
    head = None
    if chain.linear:
        head = Head.of(*chain.linear, grus[-1].grids(grus[-1].num_layers - 1)["output.h"])
    written = program(chain.grus, name, head)
    x = torch.cat([_first_row(grus[0], chain.x), vectors.example(grus[0].input_grid, grus[0].input_size)])
    y = vectors.expected(grus, x)
    return _Job(written, x, y, chain.left_out, _logits_error(head, chain.linear, y))


def _first_row(gru: QuantGRU, x: Tensor) -> Tensor:
    """Return (steps, input) integers of the first row of a GRU's input, as many as a folder takes."""
    if not x.numel():
        return torch.empty(0, gru.input_size, dtype=torch.long)
    row = x if x.dim() == 2 else x[0] if gru.batch_first else x[:, 0]
    return gru.input_grid.quantize(row[: vectors.STEPS].detach().cpu())


def _logits_error(head: Head | None, linear: tuple[str, nn.Linear] | None, y: Tensor) -> float | None:
    if head is None or linear is None:
        return None
    weight, bias = linear[1].weight.detach().double(), linear[1].bias
    real = head.state.dequantize(y) @ weight.T + (0 if bias is None else bias.detach().double())
    return float((head.grid.dequantize(head.integers(y.long())) - real).abs().max())


def _write(job: _Job, folder: Path) -> CReport:
    known = job.program
    constant_bytes = write(folder, known, job.x, job.y)
    found = compare(folder, known.name)
    return CReport(
        folder,
        known.name,
        "c",
        found.differing if found else None,
        found.total if found else None,
        constant_bytes,
        known.state_bytes,
        known.stack_bytes,
        known.multiply_accumulates,
        job.left_out,
        job.logits_error,
    )
