"""The language model and the vision tower at each shape, in each precision, beside their peers."""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.checkpoints import SHAPES, Shape, ensure_checkpoint
from benchmarks.figures import CONTEXT, TIMES, Figure, Result, compared
from benchmarks.limits import Limits, Widths, encode_work, prefill_work, step_work
from benchmarks.turns import Runner, take_turns
from services.common.native_linear import can_run
from services.decoder.linear import MAX_FEW_ROWS, can_halve

NUM_ROUNDS = 3
QUANTIZED = ("Q8_0", "Q4_0", "F16")  # llama.cpp's weights, beside which int8 stands


@dataclass(frozen=True, slots=True)
class Precision:
    """What the engine computes in, how a program is told, and bytes of a value of its keys and values."""

    name: str
    weight_bytes: int
    kv_bytes: int
    options: tuple[str, ...]

    def widths(self, batch: int) -> Widths:
        """What a step reads: fp32 too reads the 16 bits that the checkpoints have; by PyTorch in small batches."""
        if self.name != "fp32":
            return Widths(self.weight_bytes, self.weight_bytes, self.kv_bytes, is_fp32=False)
        if can_run(torch.bfloat16):
            return Widths(2, 2, 4, is_fp32=True)
        half = 2 if can_halve() else 4
        return Widths(half if batch <= MAX_FEW_ROWS else 4, half, 4, is_fp32=True)


PRECISIONS = (
    Precision("fp32", 4, 4, ()),
    Precision("bf16", 2, 2, ("--dtype", "bfloat16")),
    Precision("int8", 1, 4, ("--quantize", "int8")),
)


def measure_shape(name: str, folder: Path, *, quick: bool) -> list[Result]:
    """The engine in each precision, each of its figures beside every peer's."""
    shape = SHAPES[name]
    checkpoint = ensure_checkpoint(folder, shape)
    size = () if name == "small" else ("--large",)
    peers, quantized = _peers(size), _quantized_peers(size)
    ours = {
        precision: Runner(f"diptych {precision.name}", "benchmarks.engine", (*size, *precision.options))
        for precision in PRECISIONS
    }
    programs = [*peers, *quantized, *ours.values()]
    turns = take_turns(programs, checkpoint, _num_rounds(quick=quick), *effort(quick=quick))
    beside = {peer.name: turns[peer.name].figures for peer in peers}
    results = []
    for precision, runner in ours.items():
        own, share_of = turns[runner.name], partial(_limit_share, shape, precision)
        if precision.name == "int8":
            beside |= {peer.name: turns[peer.name].figures for peer in quantized}
        for figure in own.figures:
            share = own.share(figure.name, share_of)
            others = {} if figure.unit == TIMES else beside  # growth by itself is neither better nor worse
            results += compared(f"{name} {precision.name}: {figure.name}", figure, others, share)
        beside.setdefault("diptych fp32", own.figures)  # the first: what the others are compared with too
    return results + _measure_rest(name, checkpoint, ours[PRECISIONS[0]], quick=quick)


def _measure_rest(name: str, checkpoint: Path, engine: Runner, *, quick: bool) -> list[Result]:
    """What has no peer, in fp32."""
    turns = take_turns([engine], checkpoint, 1, "--part", "rest", *effort(quick=quick))[engine.name]
    share_of = partial(_limit_share, SHAPES[name], PRECISIONS[0])
    return [
        Result(f"{name} fp32: {figure.name}", figure.value, figure.unit, limit_share=turns.share(figure.name, share_of))
        for figure in turns.figures
    ]


def measure_encoder(name: str, folder: Path, *, quick: bool) -> list[Result]:
    """The vision tower in each precision, beside transformers'. Of a large one only single pictures."""
    shape = SHAPES[name].for_vision()
    checkpoint = ensure_checkpoint(folder, shape)
    size = () if name == "small" else ("--large",)
    tower = Runner("transformers fp32", "benchmarks.peers.vision_in_transformers", size)
    fp32 = Runner("diptych fp32", "benchmarks.encoder", size)
    int8 = Runner("diptych int8", "benchmarks.encoder", (*size, "--quantize", "int8"))
    num_rounds = _num_rounds(quick=quick) if name == "small" else 1  # its pictures take a minute
    turns = take_turns([tower, fp32, int8], checkpoint, num_rounds, *effort(quick=quick))
    share_of, beside = partial(_tower_share, shape), {tower.name: turns[tower.name].figures}
    results = []
    for runner in (fp32, int8):
        own, precision = turns[runner.name], runner.name.split()[1]
        for figure in own.figures:
            share = own.share(figure.name, share_of) if runner is fp32 else None
            results += compared(f"{name} tower {precision}: {figure.name}", figure, beside, share)
        beside.setdefault(fp32.name, own.figures)
    return results


def effort(*, quick: bool) -> list[str]:
    """How a program is told to take few repeats."""
    return ["--quick"] if quick else []


def _peers(size: tuple[str, ...]) -> list[Runner]:
    peers = [Runner("transformers fp32", "benchmarks.peers.in_transformers", size)]
    if environment := os.environ.get("VLLM_VENV"):
        peers.append(Runner("vLLM fp32", "benchmarks.peers.in_vllm", size, python=f"{environment}/bin/python"))
    return peers


def _quantized_peers(size: tuple[str, ...]) -> list[Runner]:
    """llama.cpp with each sort of weights, where LLAMA_CPP names the folder that it was built in."""
    kinds = QUANTIZED if "LLAMA_CPP" in os.environ else ()
    module = "benchmarks.peers.in_llama_cpp"
    return [Runner(f"llama.cpp {weights}", module, (*size, "--weights", weights)) for weights in kinds]


def _limit_share(shape: Shape, precision: Precision, figure: Figure, limits: Limits) -> float | None:
    """How much of the machine's limit a figure reaches, for those that have one: a prompt's is fp32's alone."""
    match figure.name.replace(",", "").split():
        case ["decode", "batch", batch]:
            return figure.value / _fastest(shape, precision, int(batch), limits)
        case ["decode", "batch", batch, "over", "batch", fewer]:
            most, less = (_fastest(shape, precision, int(count), limits) for count in (batch, fewer))
            return figure.value / (most / less)
        case ["step", "batch", batch, "context", context]:
            work = step_work(shape, int(batch), int(context), precision.widths(int(batch)))
            return limits.share(work, figure.value / 1000)
        case ["prefill", num_tokens] if precision.name == "fp32":
            return limits.share(prefill_work(shape, int(num_tokens)), figure.value / 1000)
    return None


def _fastest(shape: Shape, precision: Precision, batch: int, limits: Limits) -> float:
    """Tokens a second that the limits allow."""
    return batch / limits.least_s(step_work(shape, batch, CONTEXT, precision.widths(batch)))


def _tower_share(shape: Shape, figure: Figure, limits: Limits) -> float | None:
    side = re.fullmatch(r"encode (\d+) x \1", figure.name)
    return limits.share(encode_work(shape, int(side[1])), figure.value / 1000) if side else None


def _num_rounds(*, quick: bool) -> int:
    return 1 if quick else NUM_ROUNDS
