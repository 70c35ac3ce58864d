"""What an exported program is, and how it compares with the module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CReport:
    """A folder of C, and what is known of it.

    Attributes:
        path: the folder.
        name: of the program: ``<name>.h`` and ``<name>.c``.
        format: ``"c"``.
        differing_integers: between the program, compiled and run here, and the module; None where no compiler is.
        total_integers: that were compared; likewise.
        constant_bytes: weights, biases, shifts and tables.
        state_bytes: kept from step to step.
        stack_bytes: of arrays.
        multiply_accumulates: a time step.
        left_out: what of the model is not in the program; empty where nothing is.
        logits_error: largest difference between the linear layer's outputs and its float ones; None without one.
    """

    path: Path
    name: str
    format: str
    differing_integers: int | None
    total_integers: int | None
    constant_bytes: int
    state_bytes: int
    stack_bytes: int
    multiply_accumulates: int
    left_out: str = ""
    logits_error: float | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        ran = "not run, for no C compiler is here"
        if self.total_integers is not None:
            ran = f"{self.differing_integers} of {self.total_integers} integers differ"
        text = (
            f"{ran}; constants {self.constant_bytes:,} bytes, state {self.state_bytes:,}, "
            f"arrays on the stack {self.stack_bytes:,}; {self.multiply_accumulates:,} multiply-accumulates a step"
        )
        if self.logits_error is not None:
            text += f"; logits within {self.logits_error:.2g} of float ones"
        return f"{text}; left out: {self.left_out}" if self.left_out else text
