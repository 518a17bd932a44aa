"""What the machine allows, measured in the same run: reading memory, and multiplying matrices.

As a program it says its figures, for programs that measure between two of their own (`say_limits`).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch

from benchmarks.checkpoints import Shape
from benchmarks.figures import Figure, say, timed_ms

READER = Path(__file__).with_name("read_bandwidth.c")
GEMM_SIDE = 2048
NUM_REPEATS = 9
READ, MULTIPLY = "memory read", "fp32 matrix product"


@dataclass(frozen=True, slots=True)
class Limits:
    """Medians of several tries within a second or two."""

    read_gb_per_s: float
    gemm_gflop_per_s: float

    @classmethod
    def of(cls, figures: Sequence[Figure]) -> "Limits":
        """From their two figures."""
        values = {figure.name: figure.value for figure in figures}
        return cls(values[READ], values[MULTIPLY])

    @property
    def figures(self) -> list[Figure]:
        """As they are told."""
        return [Figure(READ, self.read_gb_per_s, "GB/s"), Figure(MULTIPLY, self.gemm_gflop_per_s, "GFLOP/s")]

    def share(self, work: "Work", seconds: float) -> float:
        """How much of the limit is reached: the least time for `work` over the time it took."""
        return self.least_s(work) / seconds

    def least_s(self, work: "Work") -> float:
        """The least time for it."""
        return max(work.num_bytes / 1e9 / self.read_gb_per_s, work.flop / 1e9 / self.gemm_gflop_per_s)

    def between(self, other: "Limits") -> "Limits":
        """The middle of two moments."""
        return Limits(
            (self.read_gb_per_s + other.read_gb_per_s) / 2, (self.gemm_gflop_per_s + other.gemm_gflop_per_s) / 2
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What must be done at least: bytes read from memory, and operations in fp32 (0 where they are not fp32)."""

    num_bytes: float
    flop: float


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of a value in memory, and whether the arithmetic is fp32's."""

    layer: int
    head: int
    kv: int
    is_fp32: bool


def step_work(shape: Shape, batch: int, context: int, widths: Widths) -> Work:
    """One decode step: every weight is read once, and every sequence's keys and values."""
    weights = shape.num_layer_weights * widths.layer + shape.num_head_weights * widths.head
    num_bytes = weights + batch * context * shape.kv_values_per_token * widths.kv
    return Work(num_bytes, 2 * batch * (shape.num_layer_weights + shape.num_head_weights) if widths.is_fp32 else 0)


def prefill_work(shape: Shape, num_tokens: int) -> Work:
    """One prompt. Each token attends to half of it on average.

    The last token alone needs the head, and more of the last layer than its keys and values.
    """
    last_layer = shape.num_layer_weights // shape.layers - shape.hidden * 2 * shape.kv_heads * shape.head_dim
    by_all, by_last = shape.num_layer_weights - last_layer, last_layer + shape.num_head_weights
    attention = 2 * (shape.layers - 1) * shape.hidden * num_tokens**2
    flop = 2 * (num_tokens * by_all + by_last) + attention
    return Work((shape.num_layer_weights + shape.num_head_weights) * 4, flop)


def encode_work(shape: Shape, side: int) -> Work:
    """One picture through the vision tower: its linear layers, and attention of every patch to every other."""
    dim, num_patches = shape.vision_dim, (side // 14) ** 2
    layers = shape.vision_layers * (2 * num_patches * 12 * dim**2 + 4 * num_patches**2 * dim)
    merger = 2 * (num_patches // 4) * 4 * dim * (4 * dim + shape.hidden)
    return Work(0, layers + merger + 2 * num_patches * 1176 * dim)


def measure_limits() -> Limits:
    """Both limits. Reading is measured by compiled C where there is a compiler, else by torch.sum."""
    return Limits(_read_gb_per_s(), _gemm_gflop_per_s())


def say_limits() -> None:
    """Say them, measured by a process of its own: the caller's threads stay as they are."""
    subprocess.run([sys.executable, "-m", "benchmarks.limits"], check=True)


def _read_gb_per_s() -> float:
    reader = _compiled_reader()
    if reader is None:
        values = torch.ones(1 << 28)
        return values.nbytes / 1e6 / median(timed_ms(values.sum) for _ in range(NUM_REPEATS))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([reader, str(NUM_REPEATS)], check=True, capture_output=True, text=True, env=environment)  # noqa: S603 -- our own program
    return median(float(line) for line in done.stdout.splitlines())


@cache
def _compiled_reader() -> str | None:
    """The path of the compiled program; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = f"{_folder().name}/reader"
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp"]
    subprocess.run([compiler, *flags, str(READER), "-o", program], check=True)  # noqa: S603 -- our own arguments
    return program


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """For as long as this process lives."""
    return tempfile.TemporaryDirectory()


def _gemm_gflop_per_s() -> float:
    """The faster of torch.mm and oneDNN's kernel for packed weights."""
    left, right = torch.randn(GEMM_SIDE, GEMM_SIDE), torch.randn(GEMM_SIDE, GEMM_SIDE)
    packed = torch.ops.mkldnn._reorder_linear_weight(right)
    kernels = (
        lambda: torch.mm(left, right),
        lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], ""),
    )
    best_ms = min(median(timed_ms(kernel) for _ in range(NUM_REPEATS)) for kernel in kernels)
    return 2 * GEMM_SIDE**3 / 1e6 / best_ms


if __name__ == "__main__":
    for measured in measure_limits().figures:
        say(measured.name, measured.value, measured.unit)
