"""Parts of a layer in the forms that they have, one beside the other, at Qwen2-VL-2B's size."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from statistics import median

import torch
from torch.nn import functional

from benchmarks.checkpoints import SHAPES
from benchmarks.figures import MILLISECONDS, Result, timed_ms
from services.common.linear import Linear, PackedLinear, Quantization, make_linear
from services.decoder.attention import attend_by_head, attend_folded
from services.decoder.linear import make_decoding_linear
from services.encoder.attention import attend

SHAPE = SHAPES["2b"]
ROWS = (1, 4, 8, 16, 24, 32, 288)
NUM_WEIGHTS = 4  # used in turn, so that each comes from memory
CHUNKS, CONTEXT = (8, 32), 4096
PATCHES, AT_ONCE = (1024, 4096), 512
PRECISIONS: dict[str, Quantization] = {"fp32": "none", "int8": "int8"}


def measure_layers(num_repeats: int) -> list[Result]:
    """Each form's median, taken in turn with the other's."""
    shape = (2 * SHAPE.intermediate, SHAPE.hidden)
    with torch.inference_mode():
        weights = [torch.randn(shape).mul_(0.02).bfloat16().float() for _ in range(NUM_WEIGHTS)]
        halves = cycle([make_decoding_linear(weight, has_copy=False) for weight in weights])
        packed = cycle([PackedLinear(weight) for weight in weights])
        products = [_product(count, halves, packed, num_repeats) for count in ROWS]
        chunks = [_chunk(count, num_repeats) for count in CHUNKS]
        few = max(1, num_repeats // 4)  # these take long
        slices = [_slice(count, few) for count in PATCHES]
        return [*products, *chunks, *slices, *(_mlp(name, kind, few) for name, kind in PRECISIONS.items())]


def _product(count: int, halves: Iterator[Linear], packed: Iterator[PackedLinear], num_repeats: int) -> Result:
    """Gate and up in fp32, by weights kept in 16 bits and in 32."""
    rows = torch.randn(count, SHAPE.hidden)
    name = f"layer: product of {count} rows, weights of 16 bits"
    return _beside(name, lambda: next(halves)(rows), "32 bits", lambda: next(packed)(rows), num_repeats)


def _chunk(count: int, num_repeats: int) -> Result:
    """A prompt's chunk over the tokens before it."""
    keys, values = torch.randn(2, 1, SHAPE.kv_heads, CONTEXT, SHAPE.head_dim)
    rows = torch.randn(count, SHAPE.heads, SHAPE.head_dim)
    later = torch.arange(CONTEXT) > torch.arange(CONTEXT - count, CONTEXT)[:, None]
    arguments = (rows, keys, values, torch.zeros(later.shape).masked_fill_(later, -torch.inf))
    together, by_head = partial(attend_folded, *arguments), partial(attend_by_head, *arguments)
    return _beside(
        f"layer: {count} tokens attend to {CONTEXT}, heads together", together, "by head", by_head, num_repeats
    )


def _slice(count: int, num_repeats: int) -> Result:
    """Attention of the vision tower: every patch of a picture to every other."""
    heads = torch.randn(3, SHAPE.vision_heads, count, SHAPE.vision_dim // SHAPE.vision_heads)
    out = torch.empty(count, *heads.shape[1::2])
    own = partial(attend, heads, [(1, count)], out)
    fused = partial(functional.scaled_dot_product_attention, *heads[:, None])
    return _beside(f"layer: {count} patches attend", own, "PyTorch's fused attention", fused, num_repeats)


def _mlp(name: str, quantization: Quantization, num_repeats: int) -> Result:
    """The vision tower's MLP over a large picture, by stretches of rows and all of them at once."""
    dim, count = SHAPE.vision_dim, PATCHES[-1]
    wide = make_linear(torch.randn(4 * dim, dim).mul_(0.02), None, quantization, "quick_gelu")
    narrow = make_linear(torch.randn(dim, 4 * dim).mul_(0.02), None, quantization)
    rows = torch.randn(count, dim)
    stretches = torch.split(rows, AT_ONCE)
    return _beside(
        f"layer: {name} MLP of {count} patches, {AT_ONCE} at once",
        *(lambda: [narrow(wide(stretch)) for stretch in stretches], "all at once", lambda: narrow(wide(rows))),
        num_repeats,
    )


def _beside(name: str, ours: Callable[[], object], peer: str, theirs: Callable[[], object], num_repeats: int) -> Result:
    """Both forms' medians, after a first time that is not counted."""
    ours(), theirs()
    times = [(timed_ms(ours), timed_ms(theirs)) for _ in range(num_repeats)]
    mine, other = (median(column) for column in zip(*times, strict=True))
    return Result(name, mine, MILLISECONDS, peer, other, other / mine)
