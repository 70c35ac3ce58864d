"""Every struct that crosses from Python to the kernels, field by field as C lays it out."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple


class Scalar(NamedTuple):
    """A C type: its name, its letter in `struct`, its bytes."""

    name: str
    letter: str
    size: int

    @property
    def alignment(self) -> int:
        """Its own size, as for all of C's numbers on a GPU."""
        return self.size


ADDRESS, LONG, INT = Scalar("address", "Q", 8), Scalar("long long", "q", 8), Scalar("int", "i", 4)
FLOAT, DOUBLE = Scalar("float", "f", 4), Scalar("double", "d", 8)


class Field(NamedTuple):
    """A member of a struct: its name, type, length (1 unless it is an array) and offset."""

    name: str
    type: Scalar | Struct
    length: int
    offset: int


class Struct:
    """A C struct.

    Args:
        name: in C.
        members: pairs of a type and of names in order, ``"a b[4]"``; another `Struct` is a type as well.

    Attributes:
        fields: `Field` by name, in order.
        size: of C, with what pads its end.
        pack: all numbers in order, nested ones in their place, to bytes: as fast as `struct.Struct.pack`.
    """

    def __init__(self, name: str, *members: tuple[Scalar | Struct, str]) -> None:
        self.name, self.fields = name, {}
        end, layout = 0, ""
        for kind, names in members:
            for word in names.split():
                field, length = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", word).groups()  # type: ignore[union-attr]
                offset = -(-end // kind.alignment) * kind.alignment
                count = int(length or 1)
                self.fields[field] = Field(field, kind, count, offset)
                layout += _padding(offset - end) + (kind.letter if isinstance(kind, Scalar) else kind.layout) * count
                end = offset + count * kind.size
        self.alignment = max(field.type.alignment for field in self.fields.values())
        self.size = -(-end // self.alignment) * self.alignment
        self.layout = layout + _padding(self.size - end)
        self.pack = struct.Struct(f"={self.layout}").pack

    def of(self, **values: Any) -> bytes:
        """Return the bytes of a value for every field, by name: a number, a sequence, or a nested struct's bytes."""
        return self._packed(list(self.fields.values()), values, 0)

    def after_first(self, **values: Any) -> bytes:
        """Return the bytes that follow the first field's: what a layer knows before it is called."""
        first, *rest = self.fields.values()
        return self._packed(rest, values, first.offset + first.length * first.type.size)

    def _packed(self, fields: list[Field], values: dict[str, Any], start: int) -> bytes:
        names = [field.name for field in fields]
        if set(values) != set(names):
            raise TypeError(f"{self.name}: got {sorted(values)}; expected a value for each of {names}")
        packed = bytearray(self.size)
        for name, kind, length, offset in fields:
            value = values[name]
            if isinstance(kind, Struct):
                content = value
            elif length > 1:
                content = struct.pack(f"={length}{kind.letter}", *value)
            else:
                content = struct.pack(f"={kind.letter}", value)
            if len(content) != length * kind.size:
                raise ValueError(f"{self.name}.{name}: got {len(content)} bytes; expected {length * kind.size}")
            packed[offset : offset + len(content)] = content
        return bytes(packed[start:])

    def assertions(self) -> Iterator[str]:
        """Yield C++ that doesn't compile where the compiler's layout, of this or a nested struct, is another."""
        yield f'static_assert(sizeof({self.name}) == {self.size}, "sizeof({self.name})");'
        for field in self.fields.values():
            if isinstance(field.type, Struct):
                yield from field.type.assertions()
            member, size = f"{self.name}::{field.name}", field.length * field.type.size
            offset = f"__builtin_offsetof({self.name}, {field.name}) == {field.offset}"
            yield f'static_assert({offset} && sizeof({member}) == {size}, "{member}");'


def _padding(size: int) -> str:
    return f"{size}x" if size else ""


CALL = Struct(
    "Call",
    (ADDRESS, "W R bw br exponents x active diverged h0 out last workspace"),
    (LONG, "x_time x_batch out_time out_batch"),
    (INT, "reverse"),
)
"""A forward call."""

MATRIX = Struct(
    "Matrix",
    (LONG, "codes offset"),
    (INT, "length padded"),
    (FLOAT, "lo hi"),
    (INT, "destination operand code_offset"),
)
PREPARE = Struct(
    "PrepareArgs",
    (CALL, "call"),
    (MATRIX, "W R"),
    (LONG, "Rt W_scale constants diverged x_codes flags"),
    (INT, "hidden units all_units Rt_rows Rt_padded time batch rows pre_exponent[4]"),
    (FLOAT, "bw_lo bw_hi br_lo br_hi x_scale x_lo x_hi"),
    (INT, "x_offset"),
)
PROJECT = Struct(
    "ProjectArgs",
    (CALL, "call"),
    (LONG, "x_codes W_codes W_scale W_offset codes bits"),
    (INT, "time tiles groups blocks"),
    (FLOAT, "Wx_lo Wx_hi"),
    (INT, "train"),
)

CHUNK = Struct(
    "Chunk",
    (ADDRESS, "workspace h0 d_out dh_in dh k d dWx dRh h_operand x_operand d_bias"),
    (LONG, "d_time d_batch"),
    (INT, "start end reverse first_time"),
)
"""Backward's tensors, for the time steps of a chunk."""

WALK = Struct(
    "WalkArgs",
    (CHUNK, "chunk"),
    (LONG, "Rt_codes"),
    (INT, "batch"),
    (FLOAT, "dh_value h_steps h_least h_most"),
)
PARAMETER_TENSORS = Struct("ParameterTensors", (ADDRESS, "W_sums R_sums W R bw br exponents dW dR dbw dbr bias_sums"))
PARAMETERS = Struct(
    "ParameterArgs",
    (PARAMETER_TENSORS, "tensors"),
    (INT, "hidden partials input x_terms x_width h_terms h_width"),
    (FLOAT, "x_step h_step lo[4] hi[4]"),
)
INPUT_TENSORS = Struct(
    "InputTensors",
    (ADDRESS, "workspace exponents weights x products dx"),
    (LONG, "x_time x_batch"),
    (INT, "rows"),
)
INPUT = Struct(
    "InputArgs",
    (INPUT_TENSORS, "tensors"),
    (LONG, "W_codes"),
    (INT, "batch input x_width hidden units W_padded"),
    (FLOAT, "x_scale x_lo x_hi"),
)


@lru_cache(maxsize=2)
def numbers(wide: bool) -> Struct:
    """Return the grids' numbers, in the arithmetic's carrier."""
    return Struct(
        "Numbers",
        (
            DOUBLE if wide else FLOAT,
            "Wx_base r_from_Wx z_from_Wx g_from_Wx Rh_lo Rh_hi Rh_least r_from_Rh r_lo r_hi z_from_Rh z_lo z_hi "
            "c_from_Rh c_lo c_hi m_lo m_hi g_from_m g_lo g_hi old_lo old_hi z_step new_lo new_hi "
            "h_from_old h_from_new h_lo h_hi",
        ),
        (FLOAT, "h_step h_steps h_least h_most"),
    )


@lru_cache(maxsize=2)
def forward(wide: bool) -> Struct:
    """Return the time loop's arguments."""
    return Struct(
        "ForwardArgs",
        (CALL, "call"),
        (LONG, "R_codes constants R_offset diverged codes flags bits states"),
        (ADDRESS, "tables"),
        (INT, "time batch groups z_table g_table h_code"),
        (numbers(wide), "n"),
    )


@lru_cache(maxsize=2)
def elements(wide: bool) -> Struct:
    """Return the arguments of backward's elementwise kernels."""
    return Struct(
        "ElementArgs",
        (CHUNK, "chunk"),
        (LONG, "codes flags bits states constants x_codes"),
        (ADDRESS, "tables"),
        (INT, "time batch hidden units tiles groups z_table g_table table_entries"),
        (INT, "input x_padded x_width x_offset h_offset"),
        (numbers(wide), "n"),
        (FLOAT, "r_value z_value c_value g_value"),
    )


def arguments(wide: bool) -> dict[str, Struct]:
    """Return each kernel's one argument."""
    of_input = {"input_weights": INPUT, "input_gradient": INPUT}
    forwards = {"prepare": PREPARE, "project": PROJECT, "forward": forward(wide)}
    backwards = {"factors": elements(wide), "walk": WALK, "operands": elements(wide), "parameters": PARAMETERS}
    return {**forwards, **backwards, **of_input}
