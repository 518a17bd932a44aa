"""Everything around flash-attn's kernels and CUDA's graphs, with plain computations in their place."""

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from services.common import mrope
from services.decoder import cuda_graphs, flash_attention
from services.decoder.attention import GatheredAttention
from services.decoder.flash_attention import PagedFlashAttention, is_available
from services.decoder.scheduler import Chunk
from services.decoder.sequence import Request, SamplingParams
from tests.decoder.harness import UNPACED, Model, Start

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 4, 2, 8, 4, 40
CPU = torch.device("cpu")


def attend_last(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, length: int
) -> torch.Tensor:
    """The last queries [n, heads, head_dim] of a sequence of `length` tokens, whose blocks a table names; causal."""
    keys, values = (part[table.long()].flatten(0, 1)[:length] for part in (keys, values))
    keys, values = (part.repeat_interleave(queries.shape[1] // part.shape[1], dim=1) for part in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * queries.shape[-1] ** -0.5
    first = length - len(queries)
    later = torch.arange(length) > torch.arange(first, length)[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), values)


def with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    causal: bool,
) -> torch.Tensor:
    """`flash_attn_with_kvcache`: q [batch, 1, heads, head_dim]."""
    assert causal
    assert cache_seqlens.dtype == block_table.dtype == torch.int32
    assert len(q) == len(cache_seqlens) == len(block_table)
    rows = zip(q, block_table, cache_seqlens.tolist(), strict=True)
    return torch.stack([attend_last(query, k_cache, v_cache, table, length) for query, table, length in rows])


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """`flash_attn_varlen_func` over a paged cache: q [all queries, heads, head_dim]."""
    assert causal
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == block_table.dtype == torch.int32
    assert len(q) == int(cu_seqlens_q[-1])
    lengths = cu_seqlens_k.diff().tolist()
    assert (max(cu_seqlens_q.diff().tolist()), max(lengths)) == (max_seqlen_q, max_seqlen_k)
    parts = torch.split(q, cu_seqlens_q.diff().tolist())
    rows = zip(parts, block_table, lengths, strict=True)
    return torch.cat([attend_last(part, k, v, table, length) for part, table, length in rows])


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `flash_attn` that can be imported."""
    module = ModuleType("flash_attn")
    monkeypatch.setattr(module, "flash_attn_with_kvcache", with_kvcache, raising=False)
    monkeypatch.setattr(module, "flash_attn_varlen_func", varlen, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def chunk(start: int, end: int, blocks: list[int]) -> Chunk:
    """Tokens `[start, end)` of a sequence that ends there."""
    request = Request(
        request_id="r",
        tenant="a",
        token_ids=[0] * end,
        positions=mrope.positions(end, []),
        delta=0,
        media=[],
        params=SamplingParams(1),
        root_hash=b"",
        on_event=lambda _: None,
    )
    sequence = request.sequences[0]
    sequence.blocks = blocks
    return Chunk(sequence, start, end)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 9)],
        [(6, 7)],
        [(4, 9), (0, 12)],
        [(2, 3), (16, 17), (0, 5), (3, 20)],
    ],
    ids=["prompt", "stream", "prompts", "both"],
)
def test_metadata_gives_the_same_as_gathering(spans: list[tuple[int, int]]) -> None:
    """Lengths, offsets and block tables lead the kernels to the same keys as the plan for PyTorch's attention."""
    free = iter(np.random.default_rng(0).permutation(NUM_BLOCKS).tolist())
    chunks = [chunk(start, end, [next(free) for _ in range(-(-end // BLOCK_SIZE))]) for start, end in spans]
    layer = torch.randn(NUM_BLOCKS + 1, BLOCK_SIZE, 2, KV_HEADS, HEAD_DIM)
    layer[NUM_BLOCKS] = 0
    queries = torch.randn(sum(part.num_tokens for part in chunks), HEADS, HEAD_DIM)
    gathered = GatheredAttention(
        chunks, block_size=BLOCK_SIZE, padding_block=NUM_BLOCKS, dtype=torch.float32, device=CPU
    )
    paged = PagedFlashAttention(chunks, block_size=BLOCK_SIZE, padding_block=NUM_BLOCKS, device=CPU)
    torch.testing.assert_close(paged.attend(queries, layer), gathered.attend(queries, layer))


@pytest.mark.parametrize(
    ("device", "dtype", "block_size"),
    [("cpu", torch.bfloat16, 256), ("cuda", torch.float32, 256), ("cuda", torch.bfloat16, 16)],
)
def test_other_layouts_are_left_to_pytorch(device: str, dtype: torch.dtype, block_size: int) -> None:
    """Without CUDA, half precision and blocks of 256 the kernels are not used, whatever is installed."""
    assert not is_available(torch.device(device), dtype, block_size)


class Graphs:
    """In the place of CUDA's: what is captured runs again on the same tensors, and its output stays where it is."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.sizes: list[int] = []  # of the batches that were replayed

    def capture(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Like `cuda_graphs.capture`."""
        self.num_captured += 1
        output = work().clone()

        def replay() -> torch.Tensor:
            self.sizes.append(len(output))
            return output.copy_(work())

        return replay


def test_graphs_give_the_same_answers(gqa_model: Model, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are continued by a few graphs of fixed sizes, prompts without, and answers are transformers'."""
    graphs = Graphs()
    monkeypatch.setattr(flash_attention, "is_available", lambda *_: True)
    monkeypatch.setattr(cuda_graphs, "capture", graphs.capture)
    harness = start(gqa_model, paused=True, max_sequences=11, max_step_tokens=64, block_size=8, **UNPACED)
    cases = [gqa_model.case(3 + 5 * i, ("image", (1, 2, 2 + i % 3)), 2, seed=i) for i in range(11)]
    lengths = [4 + i for i in range(11)]  # the batch shrinks through all sizes
    answers = [harness.submit(case, max_tokens=length) for case, length in zip(cases, lengths, strict=True)]
    harness.engine.start()
    expected = [gqa_model.generate(case, length) for case, length in zip(cases, lengths, strict=True)]
    assert [answer.wait().ids for answer in answers] == expected
    assert graphs.num_captured == 5
    assert {1, 2, 4, 8} <= set(graphs.sizes) <= {1, 2, 4, 8, 11}


def test_graphs_can_be_left_out(gqa_model: Model, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the setting off nothing is captured."""
    graphs = Graphs()
    monkeypatch.setattr(flash_attention, "is_available", lambda *_: True)
    monkeypatch.setattr(cuda_graphs, "capture", graphs.capture)
    case = gqa_model.case(9)
    answer = start(gqa_model, cuda_graphs=False).submit(case).wait()
    assert answer.ids == gqa_model.generate(case, 12)
    assert graphs.num_captured == 0
