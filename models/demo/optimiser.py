"""Muon for the hidden matrices, AdamW for everything else, the work split over processes."""

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz as in Jordan et al., "Muon" (2024)."""


def orthogonalise(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices to a stack [n, rows, columns], roughly, in bf16."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] > matrices.shape[2]
    states = matrices.mT if wide else matrices
    states = (states / (states.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(num_steps):
        gram = states @ states.mT
        states = a * states + (b * gram + c * gram @ gram) @ states
    result: Tensor = (states.mT if wide else states).float()
    return result


class Muon:
    """Momentum whose update is orthogonalised, equal shapes at once; each process does its share of each shape."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        self.groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self.groups[parameter.shape].append(parameter)
        self.buffers = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update all matrices from their gradients, which every process already shares."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = {}
        for shape, group in self.groups.items():
            stack = torch.zeros(len(group), *shape)
            mine = range(rank, len(group), world)
            for index in range(len(group)):
                gradient, buffer = gradient_of(group[index]), self.buffers[group[index]]
                buffer.lerp_(gradient, 1 - self.momentum)
                if index in mine:
                    stack[index] = gradient.lerp(buffer, self.momentum)
            if mine:
                stack[rank::world] = orthogonalise(stack[rank::world])
            updates[shape] = stack
        if world > 1:
            share(list(updates.values()))
        for shape, group in self.groups.items():
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(group, updates[shape], strict=True):
                parameter.mul_(1 - learning_rate * self.weight_decay).add_(update, alpha=-learning_rate * scale)


def gradient_of(parameter: Tensor) -> Tensor:
    """A parameter's gradient, zeros if this process had none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def share(tensors: list[Tensor]) -> None:
    """Sum tensors over all processes, in one message."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
