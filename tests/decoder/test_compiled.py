"""The compiled kernels of a step give what PyTorch's operators give."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from benchmarks.engine import request_of
from services.common.checkpoint import Checkpoint, TextConfig
from services.common.native import library, use_kernels
from services.decoder.compiled import Kernels, kernels_for
from services.decoder.compiled_attention import AttentionPlanner, numbers_of_chunks, planner_for
from services.decoder.kv_cache import KVCache
from services.decoder.language_model import LanguageModel
from services.decoder.rotary import Rotary, rotate
from services.decoder.runner import ModelRunner
from services.decoder.scheduler import Chunk
from services.decoder.weights import load_language_model
from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.decoder.harness import Model, Start

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(library() is None, reason="there are no kernels for this processor")
PROMPT, LONG = (40, 300), 1537  # rows and end of a chunk inside a prompt; a stream of four ranges


@pytest.fixture
def kernels() -> Kernels:
    """Those for this processor."""
    kernels = kernels_for(CPU, torch.float32)
    assert kernels is not None
    return kernels


@pytest.fixture
def num_threads() -> Iterator[None]:
    """What a test does with the number of threads is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(heads: int, kv_heads: int, head_dim: int) -> TextConfig:
    """A model of these heads."""
    sections = (head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6)
    return TextConfig(
        vocab_size=32,
        hidden_size=heads * head_dim,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=sections,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        hidden_act="silu",
    )


@dataclass(frozen=True)
class _Blocks:
    """In the place of a sequence."""

    blocks: list[int]


@dataclass(frozen=True)
class Batch:
    """Chunks of sequences with random keys and values before them, and random rows."""

    config: TextConfig
    block_size: int
    chunks: list[Chunk]
    positions: torch.Tensor
    projected: torch.Tensor
    layer: torch.Tensor  # NaN where nothing has been written

    @property
    def slots(self) -> torch.Tensor:
        """Where the rows' keys and values go."""
        return torch.cat([slots_of(chunk, self.block_size)[chunk.start :] for chunk in self.chunks])

    def attended(self, kernels: Kernels) -> torch.Tensor:
        """What the kernel gives; it writes into the layer."""
        planner = AttentionPlanner(kernels, self.config, self.block_size)
        rows = [*[0] * len(self.projected), *self.slots.tolist(), *self.positions.flatten().tolist()]
        numbers = torch.tensor([*rows, *numbers_of_chunks(self.chunks, self.block_size)])
        plan = planner.plan(numbers, len(self.projected), len(self.chunks))
        return plan.attend(self.projected, self.layer)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same and the layer by PyTorch, in double precision."""
        num_heads, size = self.config.num_attention_heads, self.config.head_dim
        heads = self.projected.double().view(len(self.projected), -1, size)
        rotate(
            heads[:, : num_heads + self.config.num_key_value_heads],
            *Rotary(self.config, torch.double, CPU).factors(self.positions),
        )
        layer = self.layer.double()
        layer.flatten(0, 1)[self.slots] = heads[:, num_heads:].reshape(len(heads), 2, -1, size)
        parts = torch.split(heads[:, :num_heads], [chunk.num_tokens for chunk in self.chunks])
        attended = [self._attend(queries, chunk, layer) for queries, chunk in zip(parts, self.chunks, strict=True)]
        return torch.cat(attended).flatten(1), layer

    def _attend(self, queries: torch.Tensor, chunk: Chunk, layer: torch.Tensor) -> torch.Tensor:
        keys, values = layer.flatten(0, 1)[slots_of(chunk, self.block_size)].permute(1, 2, 0, 3)
        mask = torch.arange(chunk.end) <= torch.arange(chunk.start, chunk.end)[:, None]
        by_head = queries.transpose(0, 1)
        return scaled_dot_product_attention(by_head, keys, values, attn_mask=mask, enable_gqa=True).transpose(0, 1)

    def alone(self, index: int) -> "Batch":
        """One chunk without the others."""
        first = sum(chunk.num_tokens for chunk in self.chunks[:index])
        rows = slice(first, first + self.chunks[index].num_tokens)
        return replace(
            self,
            chunks=[self.chunks[index]],
            positions=self.positions[:, rows].contiguous(),
            projected=self.projected[rows],
            layer=self.layer.clone(),
        )


def slots_of(chunk: Chunk, block_size: int) -> torch.Tensor:
    """Of all tokens up to a chunk's end."""
    tokens = torch.arange(chunk.end)
    return torch.tensor(chunk.sequence.blocks)[tokens // block_size] * block_size + tokens % block_size


def batch(shape: tuple[int, int, int], block_size: int, spans: list[tuple[int, int]]) -> Batch:
    """Chunks of so many rows that end at such tokens, in blocks that are anywhere."""
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    num_blocks = [-(-end // block_size) for _, end in spans]
    free = iter(random.permutation(sum(num_blocks) + 3).tolist())
    chunks = [
        Chunk(_Blocks([next(free) for _ in range(count)]), end - rows, end)  # type: ignore[arg-type]
        for (rows, end), count in zip(spans, num_blocks, strict=True)
    ]
    heads, kv_heads, head_dim = shape
    num_rows = sum(rows for rows, _ in spans)
    layer = torch.full((sum(num_blocks) + 3, block_size, 2, kv_heads, head_dim), torch.nan)
    for chunk in chunks:
        before = slots_of(chunk, block_size)[: chunk.start]
        layer.flatten(0, 1)[before] = torch.randn(len(before), 2, kv_heads, head_dim, generator=generator)
    return Batch(
        config(*shape),
        block_size,
        chunks,
        torch.randint(0, 5000, (3, num_rows), generator=generator),
        torch.randn(num_rows, (heads + 2 * kv_heads) * head_dim, generator=generator) * 2,
        layer,
    )


@needs_kernels
@pytest.mark.parametrize("block_size", [16, 7, 1])
@pytest.mark.parametrize("shape", [(8, 2, 64), (6, 1, 128), (3, 3, 32), (5, 1, 80), (32, 1, 16), (2, 2, 256)])
def test_attention_over_pages(kernels: Kernels, shape: tuple[int, int, int], block_size: int) -> None:
    """Streams of any length, whole prompts and parts of them: as PyTorch's, with keys and values where they belong."""
    case = batch(shape, block_size, [(1, 1), (1, 17), (1, 600), (1, LONG), (2, 2), (65, 65), PROMPT])
    expected, layer = case.expected()
    torch.testing.assert_close(case.attended(kernels).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(case.layer.double(), layer, rtol=1e-5, atol=1e-5, equal_nan=True)


@needs_kernels
def test_rows_do_not_depend_on_others_or_threads(kernels: Kernels, num_threads: None) -> None:  # noqa: ARG001
    """To the last bit."""
    case = batch((8, 2, 64), 16, [(1, 17), (1, LONG), (1, 1100), PROMPT])
    alone = [case.alone(index) for index in range(len(case.chunks))]
    torch.set_num_threads(2)
    together = case.attended(kernels)
    torch.set_num_threads(1)
    torch.testing.assert_close(torch.cat([part.attended(kernels) for part in alone]), together, rtol=0, atol=0)


@needs_kernels
def test_other_rows_of_a_chunk_do_not_matter(kernels: Kernels) -> None:
    """A row is the same at any place in any chunk of several rows."""
    whole, part = batch((8, 2, 64), 16, [PROMPT]), batch((8, 2, 64), 16, [PROMPT])
    expected = whole.attended(kernels)
    chunk = replace(part.chunks[0], start=part.chunks[0].start + 21)
    later = replace(
        part,
        chunks=[chunk],
        positions=part.positions[:, 21:].contiguous(),
        projected=part.projected[21:],
        layer=whole.layer,  # with the earlier rows' keys and values
    )
    torch.testing.assert_close(later.attended(kernels), expected[21:], rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_sequence_is_seen_and_breaks_no_other(kernels: Kernels, value: float) -> None:
    """What is not finite in a sequence comes out of its rows alone."""
    case = batch((8, 2, 64), 16, [(1, 40), (1, 41), (9, 30)])
    case.layer[case.chunks[0].sequence.blocks[1]] = value
    finite = case.attended(kernels).isfinite().all(dim=1)
    assert not finite[0]
    assert finite[1:].all()


@needs_kernels
@pytest.mark.parametrize("size", [1, 15, 64, 1408])
@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_gate(kernels: Kernels, num_rows: int, size: int) -> None:
    """silu(gate) * up, at any size, and for what is large, infinite or not a number."""
    both = torch.randn(num_rows, 2 * size, generator=torch.Generator().manual_seed(0)) * 30
    gate, up = both.chunk(2, dim=1)
    torch.testing.assert_close(kernels.gate(both), silu(gate) * up, rtol=1e-6, atol=1e-6)
    for value in (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, -0.0):
        gate.fill_(value)
        torch.testing.assert_close(kernels.gate(both), silu(gate) * up, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("num_columns", [1, 15, 1024, 5003])
def test_likeliest(kernels: Kernels, num_columns: int) -> None:
    """The first of the greatest, wherever it is; NaN is the greatest."""
    logits = torch.randint(-9, 9, (40, num_columns), generator=torch.Generator().manual_seed(0)).float()
    logits[1] = -torch.inf
    logits[2, num_columns // 2] = torch.inf
    logits[3, num_columns // 3], logits[3, -1] = torch.nan, torch.nan
    logits[4, -1] = 10
    logits[5, num_columns // 2] = 20
    forbidden = torch.tensor([num_columns // 2] if num_columns > 1 else [], dtype=torch.int64)
    expected = logits.index_fill(1, forbidden, -torch.inf)
    tokens, values = kernels.find_likeliest(logits, forbidden)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0, equal_nan=True)
    assert tokens == expected.numpy().argmax(axis=1).tolist()
    top = expected.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(values), top, rtol=0, atol=0, equal_nan=True)


@needs_kernels
def test_heads_of_other_shapes_are_left_to_pytorch() -> None:
    """The kernel is not used for what it was not made for."""
    fits = [(8, 2, 64), (33, 1, 64), (2, 1, 24), (2, 1, 272)]
    planners = [planner_for(config(*shape), torch.float32, CPU, 16) for shape in fits]
    assert [planner is not None for planner in planners] == [True, False, False, False]
    assert planner_for(config(8, 2, 64), torch.bfloat16, CPU, 16) is None


@needs_kernels
def test_all_layers_in_one_call(tmp_path: Path) -> None:
    """Steps of few rows give the same bits as layer by layer: streams, parts of prompts, and both."""
    checkpoint = Checkpoint.open(str(build_checkpoint(tmp_path, CheckpointSpec(dtype="bfloat16", heads=4, kv_heads=2))))
    weights = load_language_model(checkpoint, torch.float32, CPU).weights
    assert LanguageModel(checkpoint.text, weights)._layers_in_one is not None
    apart, together = (LanguageModel(checkpoint.text, weights) for _ in range(2))
    apart._layers_in_one = None
    runners = [ModelRunner(model, KVCache(checkpoint.text, 16, 8, torch.float32, CPU)) for model in (apart, together)]
    first, second = (request_of([*range(seed, seed + 44)], 8).sequences[0] for seed in (5, 50))
    first.blocks, second.blocks = list(range(8)), list(range(8, 16))
    first.token_ids, second.token_ids = first.token_ids[:21], second.token_ids[:30]
    steps = [
        [Chunk(first, 0, 20), Chunk(second, 0, 30)],  # the end of a prompt, and a part of one
        [Chunk(first, 20, 21), Chunk(second, 29, 30)],
        [Chunk(second, 3, 9)],  # nothing is sampled
    ]
    for step in steps:
        expected, logits = (runner.run(step) for runner in runners)
        assert len(logits) == sum(chunk.is_last for chunk in step)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_answers_are_the_same_without_kernels(gqa_model: Model, start: Start) -> None:
    """Where there is no library, PyTorch's operators give the same answers."""
    cases = [gqa_model.case(9, ("image", (1, 4, 6)), 7 + seed, seed=seed) for seed in range(3)]
    expected = [answer.ids for answer in start(gqa_model).run(cases)]
    use_kernels("torch")
    try:
        plain = Model(gqa_model.path)
        assert [answer.ids for answer in start(plain).run(cases)] == expected
    finally:
        use_kernels("auto")
