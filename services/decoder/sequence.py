"""What is being generated: a request, and one sequence for each of its choices."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from services.decoder.grammar import Matcher


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; every value is set and in range (validation.py)."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    num_choices: int = 1
    top_logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty looks at the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(slots=True)
class MediaItem:
    """A media item's pads `[offset, end)`, its key for the prefix cache, and its rows.

    The first `num_rows` of them have arrived; the rest of `rows` is not to be read.
    """

    offset: int
    num_tokens: int
    key: bytes
    rows: torch.Tensor | None = None  # [num_tokens, hidden_size]
    num_rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_rows = 0 if self.rows is None else len(self.rows)

    @property
    def end(self) -> int:
        """Index after the last pad."""
        return self.offset + self.num_tokens


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, its log probability before temperature and filters, and the likeliest alternatives (id, logprob)."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """A request's first chunk is being computed, on top of what was cached of its prompt."""

    num_cached_tokens: int
    queue_ms: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token of one choice."""

    index: int
    token_id: int
    logprob: Logprob | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of one choice; `num_tokens` counts an ending id too."""

    index: int
    reason: FinishReason
    stop_token_id: int | None
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request: every choice has ended."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request was given up because of a fault here."""

    error: Exception


Event = Begun | Token | Ended | Finished | Failed


class Clock(Protocol):
    """Seconds from some fixed moment."""

    def __call__(self) -> float: ...


@dataclass(slots=True, eq=False)
class Request:
    """One prompt and what is asked of it. `on_event` is called where the engine's `deliver` says and must not block.

    With `no_store` its blocks can be found by nobody once it is over.
    """

    request_id: str
    tenant: str
    token_ids: list[int]
    positions: NDArray[np.int64]  # [3, len(token_ids)]
    delta: int
    media: list[MediaItem]
    params: SamplingParams
    root_hash: bytes
    on_event: Callable[[Event], None]
    priority: int = 0  # 0 to MAX_PRIORITY (waiting.py); higher first
    matchers: "list[Matcher]" = field(default_factory=list)  # one a choice, or none
    resumed: list[list[int]] = field(default_factory=list)  # the answer so far, one list a choice; or none
    no_store: bool = False
    arrived: float = 0.0
    begun: float | None = None  # when its first step began
    sequences: list["Sequence"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sequences = [Sequence(self, index) for index in range(self.params.num_choices)]
        for sequence, token_ids in zip(self.sequences, self.resumed, strict=False):
            sequence.take_up(token_ids)

    def disown(self) -> None:
        """From now on like `no_store`: what is computed for it is found by itself alone, and not when it is over."""
        self.no_store, self.root_hash = True, secrets.token_bytes(32)
        for sequence in self.sequences:
            sequence.block_hashes.clear()

    @property
    def max_tokens(self) -> int:
        """Tokens of the prompt and of the longest answer together."""
        return len(self.token_ids) + self.params.max_tokens

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(sequence.ended is not None for sequence in self.sequences)


class Sequence:
    """One choice of a request: its tokens, and the blocks that hold the keys and values of the first `num_computed`."""

    def __init__(self, request: Request, index: int) -> None:
        self.request = request
        self.index = index
        self.token_ids = list(request.token_ids)
        self.num_prompt_tokens = len(request.token_ids)
        self.blocks: list[int] = []
        self.block_hashes: list[bytes] = []
        self.num_computed = 0
        self.rank = (0, 0, 0)  # its place among all; the scheduler's
        self.has_sampled = False
        self.ended: Ended | None = None
        self.matcher = request.matchers[index] if request.matchers else None
        self.counts = TokenCounts(self.token_ids) if request.params.counts_tokens else None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_ready(self) -> int:
        """Index up to which tokens can be computed, given the embeddings that have arrived."""
        return self.num_computed + self.num_ready_after(self.num_computed)

    def num_ready_after(self, start: int) -> int:
        """Tokens that can be computed from index `start` on, given the embeddings that have arrived."""
        for item in self.request.media:
            if item.num_rows < item.num_tokens and item.end > start:
                return max(item.offset + item.num_rows - start, 0)
        return self.num_tokens - start

    @property
    def is_stalled(self) -> bool:
        """Whether nothing can be computed before embeddings arrive."""
        return self.num_ready <= self.num_computed

    @property
    def waits_for_leader(self) -> bool:
        """Whether the first choice has yet to compute the prompt that this one will share."""
        leader = self.request.sequences[0]
        return self is not leader and not leader.has_sampled and leader.ended is None

    def take_up(self, token_ids: list[int]) -> None:
        """Begin with an answer that another decoder has given so far."""
        self.token_ids += token_ids
        if self.counts is not None:
            for token_id in token_ids:
                self.counts.add(token_id)

    def append(self, token_id: int) -> None:
        """Add a token to the answer."""
        self.token_ids.append(token_id)
        self.has_sampled = True
        if self.counts is not None:
            self.counts.add(token_id)

    def positions(self, start: int, end: int) -> list[list[int]]:
        """Positions of the tokens from `start` to `end` on each of three axes."""
        answer = range(max(start, self.num_prompt_tokens) + self.request.delta, end + self.request.delta)
        if start >= self.num_prompt_tokens:
            return [[*answer]] * 3
        prompt: list[list[int]] = self.request.positions[:, start : min(end, self.num_prompt_tokens)].tolist()
        return [[*axis, *answer] for axis in prompt]


class TokenCounts:
    """The distinct tokens of a sequence and how often each stands in the answer, as arrays that grow."""

    def __init__(self, prompt: list[int]) -> None:
        self._ids = np.unique(np.asarray(prompt, dtype=np.int64))
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._place = {int(token): place for place, token in enumerate(self._ids)}
        self._size = len(self._ids)

    def add(self, token_id: int) -> None:
        """Count a token of the answer."""
        place = self._place.get(token_id)
        if place is None:
            place = self._place[token_id] = self._size
            self._grow()
            self._ids[place] = token_id
            self._size += 1
        self._counts[place] += 1

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """The distinct tokens of prompt and answer."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of them stands in the answer."""
        return self._counts[: self._size]

    def _grow(self) -> None:
        if self._size == len(self._ids):
            room = max(64, self._size)
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
