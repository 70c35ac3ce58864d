"""A backend in one folder: the time step in int64, line by line. Nothing outside this folder knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qgru.ops.call import LayerCall, LayerShape
from qgru.ops.domain import outside_domain
from qgru.ops.plan import TABLE_BITS, Plan
from qgru.ops.reference import activation_table
from qgru.ops.reference_backend import Reference
from qgru.schema import OPTIONAL, WEIGHTS

FUNCTIONS = {"z": "sigmoid", "r": "sigmoid", "g": "tanh"}


class Toy(Reference):
    """Mantissas in int64 and one rounding shift; gradients are the reference's."""

    name = "toy"
    is_differentiable = False

    def why_not(self, shape: LayerShape, plans: Sequence[Plan]) -> str | None:
        for plan in plans:
            if any(plan.bitwidth(f"gate.{gate}_pre") > TABLE_BITS for gate in FUNCTIONS):
                return "a pre-activation has more than 16 bits"
            for problem in outside_domain(plan, shape.input, shape.hidden):
                return problem
        return None

    def forward(self, call: LayerCall) -> tuple[Tensor, Tensor, Tensor]:
        time, batch, _, hidden = call.sizes
        walks, finals = [], []
        for d, plan in enumerate(call.plans):
            h0 = torch.zeros(batch, hidden) if call.h0 is None else call.h0[d]
            walk = Direction(call, d, plan).walk(h0)
            walks.append(walk)
            finals.append(walk[0 if d else -1])
        states, last = torch.cat(walks, -1), torch.stack(finals)
        diverged = torch.stack([p.isnan().any() for p in call.parameters]).any()
        if bool(diverged) or (call.diverged is not None and bool(call.diverged)):
            states, last = states * torch.nan, last * torch.nan
        return states, last, torch.empty(0, dtype=torch.uint8)

    def backward(self, call: LayerCall, *rest: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        return Reference().backward(call, *rest)


class Direction:
    """One direction: quantized parameters, and the walk over time."""

    def __init__(self, call: LayerCall, index: int, plan: Plan) -> None:
        self.call, self.plan, self.reverse = call, plan, index > 0
        self.n: dict[str, Any] = {name: plan.exponent(name) for name in plan.grids}
        self.mantissas = {}
        for name, weight, n in zip(WEIGHTS, call.of_direction(index), call.exponents[index].long(), strict=True):
            self.n[name] = n
            columns = n.view(-1, *[1] * (weight.dim() - 1))
            steps = (weight.double().nan_to_num(0.0) * torch.exp2(columns.double())).round()
            self.mantissas[name] = steps.clamp(*plan.range(name)).long()

    def real_to(self, name: str, value: Tensor) -> Tensor:
        steps = (value.double().nan_to_num(0.0) * 2.0 ** self.n[name]).round()
        return steps.clamp(*self.plan.range(name)).long()

    def to(self, name: str, mantissa: Tensor, exponent: Any) -> Tensor:
        """Round half to even onto a grid: floor, then up where more than half is left, or half and odd."""
        shift = torch.as_tensor(exponent - self.n[name])
        lo, hi = self.plan.range(name)
        down = shift.clamp(0, 62)
        floor = mantissa >> down
        rest, half = mantissa - (floor << down), (1 << down) >> 1
        up = (shift > 0) & ((rest > half) | ((rest == half) & (floor % 2 == 1)))
        rounded = torch.where(shift > 62, 0, floor + up)
        limit = max(-lo, hi) + 1
        left = (-shift).clamp(0, 40)
        grown = (mantissa.clamp(-limit, limit) << left.clamp(max=28)).clamp(-limit, limit) << (left - 28).clamp(min=0)
        return torch.where(shift >= 0, rounded, grown).clamp(lo, hi)

    def look_up(self, gate: str, pre: Tensor) -> Tensor:
        before, after = (self.plan.grids[f"gate.{gate}_{end}"] for end in ("pre", "out"))
        table = activation_table(FUNCTIONS[gate], before, after) - after.zero_point
        return table[pre - before.mantissas[0]]

    def walk(self, h0: Tensor) -> Tensor:
        x, active, exponent = self.call.x, self.call.active, self.n["output.h"]
        W, R, bw, br = (self.mantissas[name] for name in WEIGHTS)
        Wx = self.to("matmul.Wx", self.real_to("input.x", x) @ W.T, self.n["input.x"] + self.n["weight.W"])
        lost, h = h0.isnan().any(-1), self.real_to("output.h", h0)
        states = torch.empty(*x.shape[:2], h.shape[1], dtype=torch.float64)
        for t in range(len(x))[::-1] if self.reverse else range(len(x)):
            new = self.step(Wx[t], h, R, bw, br)
            h = new if active is None else torch.where(active[t].unsqueeze(-1), new, h)
            lost = lost | x[t].isnan().any(-1)
            states[t] = (h * 2.0**-exponent).masked_fill(lost.unsqueeze(-1), torch.nan)
        return states

    def step(self, Wx: Tensor, h: Tensor, R: Tensor, bw: Tensor, br: Tensor) -> Tensor:
        n, size = self.n, h.shape[1]
        Rh = self.to("matmul.Rh", h @ R.T, n["output.h"] + n["weight.R"])
        pre, biases = {}, {"weight.bw": bw, "weight.br": br}
        for i, gate in enumerate("rz"):
            own = slice(i * size, (i + 1) * size)
            pre[gate] = self.sum(f"gate.{gate}_pre", own, {"matmul.Wx": Wx, "matmul.Rh": Rh, **biases})
        r, z = self.look_up("r", pre["r"]), self.look_up("z", pre["z"])
        last = slice(2 * size, 3 * size)
        c = self.sum(OPTIONAL, last, {"matmul.Rh": Rh, "weight.br": br})
        m = self.to("op.rRh", r * c, n["gate.r_out"] + n[OPTIONAL])
        terms = {"matmul.Wx": Wx, "weight.bw": bw, "op.rRh": torch.cat((m, m, m), -1)}
        g = self.look_up("g", self.sum("gate.g_pre", last, terms))
        one = max(n["gate.z_out"], 0)
        complement = (1 << one) - (z << (one - n["gate.z_out"]))
        old = self.to("op.old_contrib", z * h, n["gate.z_out"] + n["output.h"])
        new = self.to("op.new_contrib", complement * g, one + n["gate.g_out"])
        return self.sum("output.h", slice(None), {"op.old_contrib": old, "op.new_contrib": new})

    def sum(self, name: str, own: slice, terms: dict[str, Tensor]) -> Tensor:
        """Add the part `own` of every term on the finest exponent, and round onto `name`."""
        finest, total = self.plan.unrounded_exponent(name), 0
        for term, value in terms.items():
            n = self.n[term]
            total = total + (value[..., own] << (finest - (n if isinstance(n, int) else n[own])))
        return self.to(name, total, finest)


BACKEND = Toy()
