"""What a layer knows before it is called, as the kernels' structs want it: grids' numbers, sizes, places in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgru.ops.cuda import structs
from qgru.ops.cuda.plan import KernelPlan
from qgru.ops.plan import Plan
from qgru.schema import OPTIONAL, WEIGHTS

if TYPE_CHECKING:
    from qgru.ops.cuda.backward import Backward
    from qgru.ops.cuda.layer import Layer


def numbers(plan: Plan, wide: bool) -> bytes:
    """Return `Numbers`: powers of two and bounds of the grids; a bound named *_lo or *_hi carries ROUND."""
    magic = 1.5 * 2.0 ** (52 if wide else 23)
    values = {name: 2.0**shift for name, shift in plan.shifts.items()}
    bounded = {f"{gate}": f"gate.{gate}_pre" for gate in "rzg"}
    bounded |= {"Rh": "matmul.Rh", "c": OPTIONAL, "m": "op.rRh", "h": "output.h"}
    bounded |= {"old": "op.old_contrib", "new": "op.new_contrib"}
    for short, name in bounded.items():
        lo, hi = plan.range(name)
        values |= {f"{short}_lo": magic + lo, f"{short}_hi": magic + hi}
    n_h, (h_least, h_most) = plan.exponent("output.h"), plan.range("output.h")
    return structs.numbers(wide).of(
        **values,
        Wx_base=2.0**23 - plan.range("matmul.Wx")[0],
        Rh_least=plan.range("matmul.Rh")[0],
        z_step=-values["h_from_old"],
        h_step=2.0**-n_h,
        h_steps=2.0**n_h,
        h_least=h_least,
        h_most=h_most,
    )


def prepare(layer: Layer) -> bytes:
    """Return `PrepareArgs` after the call."""
    plan, shape, layout, walk, at = layer.plan, layer.shape, layer.layout, layer.walk, layer.offsets
    n, ends = plan.exponent, _ends(plan, bw="weight.bw", br="weight.br", x="input.x")
    return structs.PREPARE.after_first(
        W=_matrix(layer, "weight.W", "matmul.Wx", "input.x", shape.input, layer.projection.padded),
        R=_matrix(layer, "weight.R", "matmul.Rh", "output.h", shape.hidden, layout.padded),
        **{name: at[name] for name in ("Rt", "W_scale", "constants", "diverged", "flags")},
        x_codes=at["x"],
        hidden=shape.hidden,
        units=layout.units,
        all_units=layer.gate_rows,
        Rt_rows=walk.units if walk else 0,
        Rt_padded=walk.padded if walk else 0,
        time=shape.time,
        batch=shape.batch,
        rows=layout.groups * layout.rows,
        pre_exponent=(n("gate.r_pre"), n("gate.z_pre"), n("gate.g_pre"), n(OPTIONAL)),
        **ends,
        x_scale=2.0 ** n("input.x"),
        x_offset=plan.offset("input.x"),
    )


def _matrix(layer: Layer, weight: str, product: str, operand: str, length: int, padded: int) -> bytes:
    plan, section = layer.plan, weight[-1]
    lo, hi = plan.range(weight)
    return structs.MATRIX.of(
        codes=layer.offsets[section],
        offset=layer.offsets[f"{section}_offset"],
        length=length,
        padded=padded,
        lo=lo,
        hi=hi,
        destination=plan.exponent(product),
        operand=plan.exponent(operand),
        code_offset=-plan.offset(operand),
    )


def project(layer: Layer) -> bytes:
    """Return `ProjectArgs` after the call."""
    at = layer.offsets
    return structs.PROJECT.after_first(
        x_codes=at["x"],
        W_codes=at["W"],
        **{name: at[name] for name in ("W_scale", "W_offset", "codes", "bits")},
        time=layer.shape.time,
        tiles=layer.layout.tiles,
        groups=layer.layout.groups,
        blocks=layer.projection.blocks,
        **_ends(layer.plan, Wx="matmul.Wx"),
        train=layer.train,
    )


def forward(layer: Layer) -> bytes:
    """Return `ForwardArgs` after the call."""
    at = layer.offsets
    return structs.forward(layer.wide).after_first(
        R_codes=at["R"],
        **{name: at[name] for name in ("constants", "R_offset", "diverged", "codes", "flags", "bits", "states")},
        tables=layer.tables.data_ptr(),
        time=layer.shape.time,
        batch=layer.shape.batch,
        groups=layer.layout.groups,
        **_tables(layer.plan),
        h_code=layer.plan.offset("output.h"),
        n=layer.numbers,
    )


def elements(backward: Backward) -> bytes:
    """Return `ElementArgs` after the chunk."""
    layer, plan, shape, layout = backward.layer, backward.layer.plan, backward.layer.shape, backward.layer.layout
    n, at = plan.exponent, layer.offsets
    return structs.elements(layer.wide).after_first(
        **{name: at[name] for name in ("codes", "flags", "bits", "states", "constants")},
        x_codes=at["x"],
        tables=layer.tables.data_ptr(),
        time=shape.time,
        batch=shape.batch,
        hidden=shape.hidden,
        units=layout.units,
        tiles=layout.tiles,
        groups=layout.groups,
        **_tables(plan),
        table_entries=plan.table_entries,
        input=shape.input,
        x_padded=layer.projection.padded,
        x_width=backward.x_width,
        x_offset=-plan.offset("input.x"),
        h_offset=-plan.offset("output.h"),
        n=layer.numbers,
        r_value=2.0 ** (n(OPTIONAL) - n("op.rRh")),
        z_value=2.0 ** (n("output.h") - n("op.old_contrib")),
        c_value=2.0 ** -n(OPTIONAL),
        g_value=2.0 ** -n("op.new_contrib"),
    )


def walk(layer: Layer) -> bytes:
    """Return `WalkArgs` after the chunk."""
    n_h, (h_least, h_most) = layer.plan.exponent("output.h"), layer.plan.range("output.h")
    return structs.WALK.after_first(
        Rt_codes=layer.offsets["Rt"],
        batch=layer.shape.batch,
        dh_value=2.0 ** (n_h - layer.plan.exponent("matmul.Rh")),
        h_steps=2.0**n_h,
        h_least=h_least,
        h_most=h_most,
    )


def parameters(backward: Backward) -> bytes:
    """Return `ParameterArgs` after the tensors."""
    plan, shape = backward.layer.plan, backward.layer.shape
    lo, hi = zip(*map(plan.range, WEIGHTS), strict=True)
    return structs.PARAMETERS.after_first(
        hidden=shape.hidden,
        partials=backward.operands_grid[0],
        input=shape.input,
        x_terms=backward.x_terms,
        x_width=backward.x_width,
        h_terms=backward.h_terms,
        h_width=2 * backward.pairs,
        x_step=2.0 ** -plan.exponent("input.x"),
        h_step=2.0 ** -plan.exponent("output.h"),
        lo=lo,
        hi=hi,
    )


def inputs(backward: Backward) -> bytes:
    """Return `InputArgs` after the tensors."""
    layer, plan, shape = backward.layer, backward.layer.plan, backward.layer.shape
    return structs.INPUT.after_first(
        W_codes=layer.offsets["W"],
        batch=shape.batch,
        input=shape.input,
        x_width=backward.x_width,
        hidden=shape.hidden,
        units=layer.layout.units,
        W_padded=layer.projection.padded,
        x_scale=2.0 ** plan.exponent("input.x"),
        **_ends(plan, x="input.x"),
    )


def _ends(plan: Plan, **operators: str) -> dict[str, int]:
    """Return the ranges of mantissas, named ``x_lo`` and ``x_hi``."""
    ends = {short: plan.range(name) for short, name in operators.items()}
    return {
        f"{short}_{end}": value for short, pair in ends.items() for end, value in zip(("lo", "hi"), pair, strict=True)
    }


def _tables(plan: KernelPlan) -> dict[str, int]:
    """Return where the tables after r's start."""
    _, z, g = plan.table_starts
    return {"z_table": z, "g_table": g}
