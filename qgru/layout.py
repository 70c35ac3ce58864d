"""From everything `nn.GRU` accepts to (time, batch, feature) tensors, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Layout:
    """How a call's input was laid out.

    Attributes:
        batch_first: dimension 0 of a padded input is the batch.
        is_batched: False where the input had no batch dimension.
        packed: the packed input, or None.
        active: (time, batch) bool, False on padding; None where nothing is padded.
    """

    batch_first: bool
    is_batched: bool = True
    packed: PackedSequence | None = None
    active: Tensor | None = None

    def output(self, states: Tensor) -> Tensor | PackedSequence:
        """Lay (time, batch, feature) out as the input was."""
        if self.packed is not None:
            _, batch_sizes, sorted_indices, unsorted_indices = self.packed
            return PackedSequence(states[self.active], batch_sizes, sorted_indices, unsorted_indices)
        if not self.is_batched:
            return states.squeeze(1)
        return states.transpose(0, 1) if self.batch_first else states

    def hidden(self, h_n: Tensor) -> Tensor:
        """Lay the final state (layers * directions, batch, hidden) out as the caller's `hx` is."""
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return h_n.index_select(1, self.packed.unsorted_indices)
        return h_n if self.is_batched else h_n.squeeze(1)


def standardize(
    gru: nn.GRU, input: Tensor | PackedSequence, hx: Tensor | None, integers: bool = False
) -> tuple[Tensor, Tensor | None, Layout]:
    """Check a call's arguments and lay them out time first, padded and batched.

    Args:
        gru: the layer that is called.
        input: what `nn.GRU.forward` takes: (time, batch, input), batch first, (time, input), or packed.
        hx: (layers * directions, batch, hidden), without the batch where the input has none, or None for zeros.
        integers: both hold integers, of any types.

    Returns:
        x (time, batch, input), h0 (layers * directions, batch, hidden) or None, and the layout to return the result in.

    Raises:
        ValueError, RuntimeError: `nn.GRU`'s own, naming the dimension, size, dtype or device and what was expected.
    """
    packed = input if isinstance(input, PackedSequence) else None
    flat = input.data if packed is not None else input
    if packed is None and flat.dim() not in (2, 3):
        raise ValueError(f"GRU: Expected input to be 2D or 3D, got {flat.dim()}D instead")
    is_batched = packed is not None or flat.dim() == 3
    if hx is not None and hx.dim() != (3 if is_batched else 2):
        expected = "3-D for a batched" if is_batched else "2-D for an unbatched"
        raise RuntimeError(f"GRU: Expected hx to be {expected} input, got {hx.dim()}-D instead")
    if not is_batched:
        flat = flat.unsqueeze(0 if gru.batch_first else 1)
        hx = None if hx is None else hx.unsqueeze(1)
    if hx is not None and packed is not None:
        hx = gru.permute_hidden(hx, packed.sorted_indices)
    batch_sizes = None if packed is None else packed.batch_sizes
    if not integers:
        gru.check_input(flat, batch_sizes)
    elif flat.shape[-1] != gru.input_size:
        raise RuntimeError(f"GRU: Expected an input of size {gru.input_size}, got {flat.shape[-1]}")
    if hx is not None:
        gru.check_hidden_size(hx, gru.get_expected_hidden_size(flat, batch_sizes))
    _check_state(gru, flat, hx, integers)
    if packed is None:
        x = flat.transpose(0, 1) if gru.batch_first else flat
        if len(x) == 0:
            raise RuntimeError("GRU: Expected a sequence of at least 1 time step, got 0")
        return x, hx, Layout(gru.batch_first, is_batched)
    active = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)
    active = active.to(flat.device)
    x = flat.new_zeros(*active.shape, flat.shape[-1])
    x[active] = flat
    return x, hx, Layout(gru.batch_first, True, packed, active)


def _check_state(gru: nn.GRU, input: Tensor, hx: Tensor | None, any_type: bool) -> None:
    """Check what torch's kernel would only find on its own."""
    expected = gru.weight_ih_l0.device
    for name, tensor in (("input", input), ("hx", hx)):
        if tensor is not None and tensor.device != expected:
            raise RuntimeError(f"GRU: Expected {name} on {expected}, where the parameters are, got {tensor.device}")
    if any_type or hx is None or torch.is_autocast_enabled(input.device.type):
        return
    if hx.dtype != input.dtype:
        raise ValueError(f"GRU: Expected hx of {input.dtype}, the input's type, got {hx.dtype}")
