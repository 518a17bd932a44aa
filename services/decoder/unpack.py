"""Weights of AWQ and GPTQ checkpoints as ordinary numbers.

A layer is stored transposed, as `qweight` (whole numbers, several in a word of 32 bits), `qzeros` and `scales` (for
each group of inputs and each output), and for GPTQ `g_idx` (the group of each input). A weight is
(number - zero) * scale.
AWQ packs outputs, eight to a word, even ones first; GPTQ packs inputs, and its zero points by output, in plain order.
"""

from collections.abc import Mapping

import torch

from services.common.checkpoint.packing import Packing

PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each output in its word
INPUTS, OUTPUTS = 0, 1  # dimensions of what is stored


def unpack(parts: Mapping[str, torch.Tensor], packing: Packing) -> torch.Tensor:
    """The weight [outputs, inputs] in fp32, from a layer's `PARTS`; g_idx may be missing."""
    if packing.method == "awq":
        levels = _numbers(parts["qweight"], packing.bits, OUTPUTS, AWQ_PLACES)
        zeros = _numbers(parts["qzeros"], packing.bits, OUTPUTS, AWQ_PLACES)
    else:
        levels = _numbers(parts["qweight"], packing.bits, INPUTS)
        zeros = _numbers(parts["qzeros"], packing.bits, OUTPUTS) + packing.zero_offset & (1 << packing.bits) - 1
    groups = parts.get("g_idx")
    if groups is None:
        groups = torch.arange(len(levels)) // -(-len(levels) // len(zeros))
    groups = groups.long()
    return ((levels - zeros[groups]) * parts["scales"].float()[groups]).T


def _numbers(words: torch.Tensor, bits: int, dim: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """Unpack along a dimension; `places` in a word are in order unless given."""
    shifts = torch.tensor(places or range(32 // bits), dtype=torch.int32) * bits
    numbers = words.unsqueeze(-1) >> shifts & (1 << bits) - 1
    return numbers.movedim(-1, dim + 1).flatten(dim, dim + 1)
