"""Measures the decoder's engine on a checkpoint, in a process of its own: one figure a line."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints import IMAGE_PAD, MAX_TEXT_ID
from benchmarks.figures import (
    BATCHES,
    CONTEXT,
    MILLISECONDS,
    PERCENT,
    TIMES,
    TOKENS,
    TOKENS_PER_S,
    Effort,
    argument_parser,
    median_ms,
    say,
)
from benchmarks.limits import say_limits
from services.common import mrope
from services.common.allocator import keep_freed_memory
from services.common.checkpoint import Checkpoint
from services.common.mrope import Span
from services.decoder.assemble import build_engine
from services.decoder.embeddings import TORCH_DTYPES
from services.decoder.engine import Engine
from services.decoder.kv_cache import KVCache
from services.decoder.language_model import LanguageModel
from services.decoder.prefix_cache import root_hash
from services.decoder.runner import ModelRunner
from services.decoder.sampler import Sampler
from services.decoder.scheduler import Chunk
from services.decoder.sequence import Begun, Event, Failed, Finished, MediaItem, Request, SamplingParams, Token
from services.decoder.settings import DecoderSettings
from services.decoder.weights import load_language_model

WAIT_S = 1800
BLOCK_SIZE = 16
ALL_AT_ONCE: dict[str, Any] = {"max_step_tokens": 8192, "max_stretch": 1e9}  # prompts are not split
PICTURE = (1, 32, 32)  # 448 x 448 pixels
LONG_PROMPT = 4096
NUM_STREAMS = 4
NUM_IDLE_TOKENS = {False: 300, True: 150}  # by --large; before a prompt, and as many after it
NUM_TURNS, QUESTION_TOKENS, ANSWER_TOKENS = 5, 32, 8
STEP_BATCHES, STEP_CONTEXTS = (1, 2, 4, 8, 16, 32, 64), (256, 1024, 4096, 16384)

_random = np.random.default_rng(0)


class Stream:
    """A request in an engine, and the moments at which its tokens came."""

    def __init__(self, engine: Engine, token_ids: list[int], max_tokens: int, media: list[MediaItem]) -> None:
        self.times: list[float] = []
        self.ids: list[int] = []
        self.num_cached_tokens = 0
        self._over = threading.Event()
        self._arrived = threading.Condition()
        self._engine = engine
        self._request = request_of(token_ids, max_tokens, media, self._note)
        self._began = perf_counter()
        engine.submit(self._request)

    @property
    def first_token_ms(self) -> float:
        """From the request to its first token."""
        return (self.times[0] - self._began) * 1000

    @property
    def intervals_ms(self) -> list[float]:
        """Between one token and the next."""
        return [(after - before) * 1000 for before, after in pairwise(self.times)]

    def wait(self) -> "Stream":
        """Wait for the end."""
        if not self._over.wait(WAIT_S):
            raise TimeoutError
        return self

    def wait_for(self, num_tokens: int) -> None:
        """Wait until so many tokens have come."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.times) >= num_tokens, WAIT_S):
                raise TimeoutError

    def cancel(self) -> None:
        """Let the engine forget it."""
        self._engine.cancel(self._request)

    def _note(self, event: Event) -> None:
        if isinstance(event, Begun):
            self.num_cached_tokens = event.num_cached_tokens
        if isinstance(event, Token):
            with self._arrived:
                self.times.append(perf_counter())
                self.ids.append(event.token_id)
                self._arrived.notify_all()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            self._over.set()


class EngineBenchmark:
    """The figures of one checkpoint in one precision."""

    def __init__(self, checkpoint: Checkpoint, model: LanguageModel, effort: Effort) -> None:
        self._checkpoint, self._model = checkpoint, model
        self._num_repeats, self._num_steps, self._num_tokens = effort.num_repeats, effort.num_steps, effort.num_tokens

    def decode(self, batches: tuple[int, ...]) -> None:
        """Tokens a second of so many streams, and how many more that are of the most than of the next fewer."""
        speeds = []
        for batch in batches:
            speeds.append(self._decode(batch))
            say(f"decode, batch {batch}", speeds[-1], TOKENS_PER_S)
            if batch == batches[-1]:
                say(f"decode, batch {batch} over batch {batches[-2]}", speeds[-1] / speeds[-2], TIMES)
            say_limits()

    def _decode(self, batch: int) -> float:
        """Tokens a second of `batch` streams that start together: from the median time between tokens."""
        with self._engine(started=False, **ALL_AT_ONCE) as engine:
            streams = [Stream(engine, _text(CONTEXT), self._num_tokens, []) for _ in range(batch)]
            engine.start()
            intervals = [stream.wait().intervals_ms for stream in streams]
        return batch * 1000 / median(intervals[0])

    def prefill(self, num_tokens: int) -> None:
        """Time to the first token of a text prompt."""
        with self._engine(**ALL_AT_ONCE) as engine:
            times = [Stream(engine, _text(num_tokens), 1, []).wait().first_token_ms for _ in range(self._num_repeats)]
        say(f"prefill {num_tokens}", median(times), MILLISECONDS)

    def second_question(self) -> None:
        """Time to the first token about a picture that is new, and about the same picture again; embeddings given."""
        first: list[float] = []
        second: list[float] = []
        with self._engine(**ALL_AT_ONCE) as engine:
            for _ in range(self._num_repeats):
                before, item = _text(16), self._picture(16)
                for times in (first, second):
                    ids = before + [IMAGE_PAD] * item.num_tokens + _text(16)
                    times.append(Stream(engine, ids, 1, [item]).wait().first_token_ms)
        say("question about a picture", median(first), MILLISECONDS)
        say("second question about it", median(second), MILLISECONDS)
        say("second question, share of the first", 100 * median(second) / median(first), PERCENT)

    def fifth_turn(self) -> None:
        """Time to the first token of a conversation's fifth turn, and how many of its tokens had to be computed."""
        times: list[float] = []
        with self._engine(**ALL_AT_ONCE) as engine:
            for _ in range(self._num_repeats):
                item = self._picture(16)
                ids = _text(16) + [IMAGE_PAD] * item.num_tokens
                for _ in range(NUM_TURNS):
                    ids += _text(QUESTION_TOKENS)
                    num_tokens = len(ids)
                    turn = Stream(engine, list(ids), ANSWER_TOKENS, [item]).wait()
                    ids += turn.ids
                times.append(turn.first_token_ms)
        say("fifth turn of a conversation", median(times), MILLISECONDS)
        say("fifth turn, its own tokens", QUESTION_TOKENS, TOKENS)
        say("fifth turn, tokens before its answer", num_tokens, TOKENS)
        say("fifth turn, tokens computed", num_tokens - turn.num_cached_tokens, TOKENS)

    def stutter(self, name: str, num_idle_tokens: int, **settings: Any) -> None:
        """Time between tokens of running streams, while a long prompt is computed and around that: 99th percentiles."""
        with self._engine(**settings) as engine:
            streams = [Stream(engine, _text(64), LONG_PROMPT, []) for _ in range(NUM_STREAMS)]
            streams[-1].wait_for(3)  # all run
            seen = streams[0]
            start = len(seen.times)
            seen.wait_for(start + num_idle_tokens)
            last_before = len(seen.times) - 1
            prompt = Stream(engine, _text(LONG_PROMPT), 1, []).wait()
            first_after = len(seen.times) + 1  # after the step that ended the prompt
            seen.wait_for(first_after + num_idle_tokens)
            for stream in streams:
                stream.cancel()
        intervals = seen.intervals_ms
        around = float(np.percentile(intervals[start:last_before] + intervals[first_after:], 99))
        beside = float(np.percentile(intervals[last_before:first_after], 99))
        say(f"between tokens, p99, around a {name}", around, MILLISECONDS)
        say(f"between tokens, p99, {name}", beside, MILLISECONDS)
        say(f"between tokens, p99 over that around it, {name}", beside / around, TIMES)
        say(f"prefill {LONG_PROMPT} beside streams, {name}", prompt.first_token_ms, MILLISECONDS)

    def steps(self, batches: tuple[int, ...], contexts: tuple[int, ...]) -> None:
        """Time of one decode step over the batch, and over the context. What the cache holds does not matter."""
        sizes = [*((batch, contexts[0]) for batch in batches), *((1, context) for context in contexts[1:])]
        for batch, context in sizes:
            say(f"step, batch {batch}, context {context}", self._step_ms(batch, context), MILLISECONDS)
            say_limits()

    def _step_ms(self, batch: int, context: int) -> float:
        num_blocks = context // BLOCK_SIZE + 1
        config, device = self._checkpoint.text, self._model.device
        cache = KVCache(config, batch * num_blocks, BLOCK_SIZE, self._model.dtype, device)
        runner, sampler = ModelRunner(self._model, cache), Sampler([IMAGE_PAD], device)
        sequences = [request_of(_text(context), 1).sequences[0] for _ in range(batch)]
        for index, sequence in enumerate(sequences):
            sequence.blocks = list(range(index * num_blocks, (index + 1) * num_blocks))
        chunks = [Chunk(sequence, context - 1, context) for sequence in sequences]
        return median_ms(lambda: sampler.sample(runner.run(chunks), sequences), self._num_steps)

    def _picture(self, offset: int) -> MediaItem:
        num_tokens = PICTURE[1] * PICTURE[2] // 4
        rows = torch.from_numpy(_random.standard_normal((num_tokens, self._checkpoint.text.hidden_size), np.float32))
        return MediaItem(offset, num_tokens, _random.bytes(32), rows)

    @contextmanager
    def _engine(self, *, started: bool = True, **settings: Any) -> Iterator[Engine]:
        chosen = {"kv_cache_tokens": 1 << 14, "block_size": BLOCK_SIZE, **settings}
        model = str(self._checkpoint.path)
        engine = build_engine(DecoderSettings(model=model, **chosen), self._checkpoint, self._model).engine
        if started:
            engine.start()
        yield engine
        engine.stop()


def _text(num_tokens: int) -> list[int]:
    """Ids of text that no prompt before it starts with."""
    ids: list[int] = _random.integers(0, MAX_TEXT_ID, num_tokens).tolist()
    return ids


def request_of(
    token_ids: list[int],
    max_tokens: int,
    media: Sequence[MediaItem] = (),
    on_event: Callable[[Event], None] = lambda _: None,
) -> Request:
    """A greedy request that only its length ends."""
    spans = [Span(item.offset, PICTURE, 2) for item in media]
    return Request(
        request_id="benchmark",
        tenant="benchmark",
        token_ids=token_ids,
        positions=mrope.positions(len(token_ids), spans),
        delta=mrope.delta(len(token_ids), spans),
        media=list(media),
        params=SamplingParams(max_tokens),
        root_hash=root_hash("benchmark"),
        on_event=on_event,
    )


def main() -> None:
    """The figures of one checkpoint."""
    parser = argument_parser(__doc__)
    parser.add_argument("--dtype", default="float32", choices=TORCH_DTYPES)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--part", choices=("speed", "rest"), default="speed", help="decode and prefill, or all else")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the decoder does
    checkpoint = Checkpoint.open(arguments.checkpoint)
    with ThreadPoolExecutor(1) as loader:  # its helper threads end with it
        dtype, cpu = TORCH_DTYPES[arguments.dtype], torch.device("cpu")
        model = loader.submit(load_language_model, checkpoint, dtype, cpu, arguments.quantize).result()
    effort = Effort.of(arguments)
    benchmark = EngineBenchmark(checkpoint, model, effort)
    if arguments.part == "speed":
        benchmark.decode(BATCHES)
        for num_tokens in effort.prefills:
            benchmark.prefill(num_tokens)
            say_limits()
        return
    benchmark.second_question()
    benchmark.fifth_turn()
    num_idle_tokens = 20 if arguments.quick else NUM_IDLE_TOKENS[arguments.large]
    benchmark.stutter("4096-token prompt in chunks", num_idle_tokens)
    benchmark.stutter("4096-token prompt at once", num_idle_tokens, **ALL_AT_ONCE)
    benchmark.steps(STEP_BATCHES, STEP_CONTEXTS)


if __name__ == "__main__":
    main()
