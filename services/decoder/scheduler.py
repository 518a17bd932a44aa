"""Chooses what the next step computes: running streams first, then prompts in chunks, then whoever waits.

Blocks are taken as they are needed. When none is left, the running sequence of the last rank (waiting.py: arrival and
priority) gives its own back and is computed again later; the first always goes on, so the batch never locks up.
"""

import time
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.decoder.kv_cache import BlockPool
from services.decoder.pace import Pace
from services.decoder.prefix_cache import block_hash
from services.decoder.sequence import Clock, Request, Sequence
from services.decoder.waiting import WaitingQueue, rank

MEDIA_PATIENCE_S = 0.02  # cached embeddings are here by then
SHORT_START_TOKENS = 256  # a step for fewer would cost the reading of all weights for little


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `[start, end)` of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return self.end - self.start

    @property
    def is_last(self) -> bool:
        """Whether nothing is left to compute after it, so that the next token can be sampled."""
        return self.end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step may hold: sequences, and tokens."""

    max_sequences: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """A moment's figures. `num_slots`: sequences that could run; those that do, while others wait for memory."""

    num_running: int = 0
    num_waiting: int = 0
    num_used_blocks: int = 0
    num_preemptions: int = 0
    num_slots: int = 0


class Scheduler:
    """Keeps the waiting and the running sequences and their blocks. Used by the engine's thread alone."""

    def __init__(
        self, pool: BlockPool, block_size: int, limits: StepLimits, pace: Pace, clock: Clock = time.monotonic
    ) -> None:
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []  # by rank
        self._num_preemptions = 0
        self._pool = pool
        self._block_size = block_size
        self._limits, self._pace, self._clock = limits, pace, clock
        self._chunks: dict[Sequence, Chunk] = {}
        self._num_arrived = 0

    def add(self, request: Request) -> None:
        """Let every choice of a request wait for its turn."""
        self._num_arrived += 1
        for sequence in request.sequences:
            sequence.rank = rank(self._num_arrived, sequence)
            self.waiting.add(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; streams (one token each) come first. Empty when there is nothing to do."""
        self._chunks = {}
        self._continue(lambda sequence: sequence.num_left == 1, self._limits.max_tokens)
        budget = self._pace.prefill_tokens(len(self._chunks), self._limits.max_tokens - len(self._chunks))
        budget = self._continue(lambda sequence: sequence.num_left > 1, budget)
        self._admit(budget)
        return sorted(self._chunks.values(), key=lambda chunk: (chunk.num_tokens > 1, chunk.end))

    def complete(self, chunk: Chunk) -> None:
        """Note that a chunk has been computed; full blocks can be shared from now on."""
        sequence = chunk.sequence
        sequence.num_computed = chunk.end
        first, last = chunk.start // self._block_size, chunk.end // self._block_size
        self._extend_hashes(sequence, last)
        for index in range(first, last):
            self._pool.publish(sequence.blocks[index], sequence.block_hashes[index], sequence.request.tenant)

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Forget sequences that have ended or are not wanted any more, and free their blocks."""
        for sequence in sequences:
            self.waiting.remove(sequence)
            if sequence in self.running:
                self.running.remove(sequence)
            if sequence.request.no_store:
                self._pool.withdraw(sequence.blocks)
            self._release(sequence)

    def note_duration(self, chunks: list[Chunk], seconds: float) -> None:
        """Learn from how long a step took."""
        num_streams = sum(chunk.num_tokens == 1 for chunk in chunks)
        self._pace.note(num_streams, sum(chunk.num_tokens for chunk in chunks) - num_streams, seconds)

    @property
    def tokens_per_s(self) -> float:
        """Tokens computed in a second, lately; 0 at first."""
        return self._pace.tokens_per_s

    @property
    def patience_s(self) -> float | None:
        """When to look again at sequences that wait for media, if nothing happens before."""
        left = [seconds for sequence in self.waiting if (seconds := self._patience_s(sequence)) > 0]
        return min(left, default=None)

    def load(self) -> Load:
        """Figures of this moment."""
        num_running, num_waiting = len(self.running), len(self.waiting)
        num_slots = num_running if num_waiting and num_running else self._limits.max_sequences
        return Load(num_running, num_waiting, self._pool.num_used, self._num_preemptions, num_slots)

    def forget(self, tenant: str) -> list[int]:
        """Let the blocks of a tenant not be found any more: those that could be."""
        return self._pool.withdraw_all_of(tenant)

    def is_used(self, block: int) -> bool:
        """Whether some sequence holds this block."""
        return self._pool.is_used(block)

    def discard(self, sequences: list[Sequence]) -> list[int]:
        """Like `remove`, for keys and values that cannot be trusted: the blocks that nobody uses any more."""
        blocks = [block for sequence in sequences for block in sequence.blocks]
        self._pool.withdraw(blocks)
        self.remove(sequences)
        return [block for block in set(blocks) if not self._pool.is_used(block)]

    def _continue(self, belongs: Callable[[Sequence], bool], budget: int) -> int:
        """Schedule running sequences that `belongs` names, by rank. The budget that is left."""
        for sequence in [sequence for sequence in self.running if belongs(sequence)]:
            if budget <= 0 or len(self._chunks) >= self._limits.max_sequences:
                break
            if sequence in self.running:  # not preempted by an earlier one meanwhile
                budget -= self._schedule(sequence, budget)
        return budget

    def _admit(self, budget: int) -> None:
        """Start waiting sequences while the batch, the budget and the memory have room for them."""
        while budget > 0 and len(self._chunks) < self._limits.max_sequences:
            sequence = self.waiting.next_ready(self._has_work)
            if sequence is None or not self._start(sequence):
                break
            budget -= self._schedule(sequence, budget)

    def _has_work(self, sequence: Sequence) -> bool:
        """Whether something of a waiting sequence can be computed now, given what is cached of it."""
        if sequence.waits_for_leader:
            return False
        start = len(self._cached_blocks(sequence)) * self._block_size
        num_ready = sequence.num_ready_after(start)
        is_short_start = num_ready < min(SHORT_START_TOKENS, sequence.num_tokens - start)
        return num_ready > 0 and not (is_short_start and self._patience_s(sequence) > 0)

    def _patience_s(self, sequence: Sequence) -> float:
        """How much longer a short text before media that is not here yet is left alone, to be computed with it."""
        return sequence.request.arrived + MEDIA_PATIENCE_S - self._clock()

    def _start(self, sequence: Sequence) -> bool:
        """Move a waiting sequence into the batch on top of its cached blocks, if all its tokens fit in memory now."""
        cached = self._cached_blocks(sequence)
        for block in cached:
            self._pool.share(block)
        if not self._make_room(sequence, self._num_blocks(sequence.num_tokens) - len(cached)):
            self._pool.free(cached)
            return False
        sequence.blocks = cached
        sequence.num_computed = len(cached) * self._block_size
        self.waiting.take(sequence)
        insort(self.running, sequence, key=lambda running: running.rank)
        return True

    def _make_room(self, sequence: Sequence, num_blocks: int) -> bool:
        """Whether `num_blocks` are free for a newcomer. Who waits for embeddings gives way to one that can run."""
        can_run = sequence.num_ready == sequence.num_tokens
        while num_blocks + self._headroom() > self._pool.num_available:
            stalled = self._last_stalled()
            if stalled is None or not can_run:
                return False
            self._preempt(stalled)
        return True

    def _headroom(self) -> int:
        """Blocks to leave free at an admission: each running sequence may fill its last one in this very step."""
        return len(self.running) + 1 if self.running else 0

    def _last_stalled(self) -> Sequence | None:
        return next((sequence for sequence in reversed(self.running) if sequence.is_stalled), None)

    def _schedule(self, sequence: Sequence, budget: int) -> int:
        """Add a sequence's next chunk to the step. Tokens taken: 0 if it has to wait or gave its blocks back."""
        start = sequence.num_computed
        end = min(sequence.num_ready, start + budget)
        if end <= start or not self._reserve(sequence, end):
            return 0
        self._chunks[sequence] = Chunk(sequence, start, end)
        return end - start

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence the blocks for its first `num_tokens`, taking them from later ranks if need be."""
        while len(sequence.blocks) < self._num_blocks(num_tokens):
            if self._pool.num_available:
                sequence.blocks.append(self._pool.allocate())
                continue
            victim = self._last_stalled() or self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back; its tokens stay, its keys and values are computed again."""
        self._num_preemptions += 1
        self.running.remove(sequence)
        self._chunks.pop(sequence, None)
        self._release(sequence)
        self.waiting.put_back(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._pool.free(sequence.blocks)
        sequence.blocks, sequence.num_computed = [], 0

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold the start of a sequence. One token at least is left, to get logits from."""
        num_blocks = (sequence.num_tokens - 1) // self._block_size
        self._extend_hashes(sequence, num_blocks)
        found: list[int] = []
        for index in range(num_blocks):
            block = self._pool.find(sequence.block_hashes[index])
            if block is None:
                break
            found.append(block)
        return found

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        request, size = sequence.request, self._block_size
        for index in range(len(sequence.block_hashes), num_blocks):
            parent = sequence.block_hashes[-1] if sequence.block_hashes else request.root_hash
            tokens = sequence.token_ids[index * size : (index + 1) * size]
            sequence.block_hashes.append(block_hash(parent, index * size, tokens, request.media))

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
