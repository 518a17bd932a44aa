"""Rotary positions on three axes (M-RoPE): each frequency turns with the axis of its section."""

import torch

from services.common.checkpoint import TextConfig


def rotary_tables(config: TextConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies [head_dim / 2], and the axis (0 time, 1 height, 2 width) of each."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    # not by repeat_interleave, which calls OpenMP's helpers for any size, and they stay (services/common/threads.py)
    axes = [axis for axis, num_frequencies in enumerate(config.mrope_section) for _ in range(num_frequencies)]
    return (1.0 / config.rope_theta**exponents).to(device), torch.tensor(axes, device=device)


class Rotary:
    """Turns heads by PyTorch's operators."""

    def __init__(self, config: TextConfig, dtype: torch.dtype, device: torch.device) -> None:
        frequency, axis = rotary_tables(config, device)
        self._signed_frequency, self._axis = torch.cat([-frequency, frequency]), axis.repeat(2)
        self._dtype = dtype

    def factors(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines [rows, 1, head_dim] of positions [3, rows]; the first half turns back."""
        angles = positions.index_select(0, self._axis).T.float().mul_(self._signed_frequency)[:, None]
        return angles.cos().to(self._dtype), angles.sin().to(self._dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
    """Rotate [rows, heads, head_dim] in place; halves swap places, the sign is in the sine."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    heads.mul_(cos).addcmul_(swapped, signed_sin)
