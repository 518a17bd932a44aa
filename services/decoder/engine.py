"""The loop that generates: schedule, run, sample, postprocess. It has its own thread; others talk to it by queue."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
import torch

from services.common.errors import Overloaded
from services.common.threads import compute_here
from services.decoder.forecast import Forecast
from services.decoder.runner import ModelRunner
from services.decoder.sampler import Sample, Sampler
from services.decoder.scheduler import Chunk, Load, Scheduler
from services.decoder.sequence import (
    Begun,
    Clock,
    Ended,
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprob,
    Request,
    Sequence,
    Token,
)

log = structlog.get_logger()

MIN_RETRY_S, MAX_RETRY_S = 1.0, 30.0
Told = list[tuple[Request, Event]]


class NotFiniteError(Exception):
    """A sequence's logits are NaN or infinite."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait: requests, and the tokens of their prompts."""

    max_requests: int
    max_tokens: int


def tell(told: Told) -> None:
    """Give each request its events, in their order."""
    for request, event in told:
        request.on_event(event)


class Engine:
    """Generates for many requests at once. `submit`, `cancel` and `provide` may be called from any thread.

    `deliver` gets all events of a step at once, in the engine's thread, and sees to it that they are told.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- its parts
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        sampler: Sampler,
        limits: QueueLimits,
        clock: Clock = time.monotonic,
        on_step: Callable[[float], None] = lambda _: None,
        deliver: Callable[[Told], None] = tell,
    ) -> None:
        self._runner, self._scheduler, self._sampler = runner, scheduler, sampler
        self._limits, self._clock, self._on_step, self._deliver = limits, clock, on_step, deliver
        self.load, self._forecast = Load(), Forecast()
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._requests: set[Request] = set()
        self._queued: dict[Request, int] = {}  # tokens of each request that has not begun
        self._told: Told = []
        self._stopping = False
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop after the step it is in, and wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, request: Request, patience_s: float = math.inf) -> None:
        """Queue a request. Raises Overloaded like `require_room`."""
        with self._changed:
            self.require_room(len(request.token_ids), request.params.max_tokens, patience_s)
            self._queued[request] = len(request.token_ids)
        request.arrived = self._clock()
        self._command(lambda: self._add(request))

    def require_room(self, num_prompt_tokens: int, max_tokens: int, patience_s: float) -> None:
        """Raises Overloaded when too much waits already, or so much that an answer cannot end in time."""
        with self._changed:
            num_tokens = sum(self._queued.values()) + num_prompt_tokens
            if self._queued and (
                len(self._queued) >= self._limits.max_requests or num_tokens > self._limits.max_tokens
            ):
                raise Overloaded(retry_after_s=_retry_s(num_tokens / max(self._scheduler.tokens_per_s, 1.0)))
            if (late_s := self._busy_s(max_tokens) - patience_s) > 0:
                raise Overloaded("the answer cannot be finished in time", retry_after_s=_retry_s(late_s))

    def cancel(self, request: Request) -> None:
        """Forget a request; its blocks are free after the step that runs now. Nothing if it has ended."""
        self._command(lambda: self._drop(request))

    def provide(self, request: Request, media_index: int, rows: torch.Tensor, num_rows: int | None = None) -> None:
        """Hand over a media item's embeddings [num_tokens, hidden_size], of which the first `num_rows` are there (all).

        More of them may be told later, in the same tensor; what is there does not change any more.
        """

        def place() -> None:
            item = request.media[media_index]
            item.rows, item.num_rows = rows, len(rows) if num_rows is None else num_rows

        self._command(place)

    def purge(self, tenant: str) -> "Future[int]":
        """Let no block of a tenant be found any more, nor one of what runs for it; how many could be."""
        done: Future[int] = Future()

        def forget() -> None:
            for request in self._requests:
                if request.tenant == tenant:
                    request.disown()
            blocks = self._scheduler.forget(tenant)
            self._runner.cache.clear([block for block in blocks if not self._scheduler.is_used(block)])
            done.set_result(len(blocks))

        self._command(forget)
        return done

    def _loop(self) -> None:
        compute_here(self._num_threads)  # the thread that starts this one may compute with fewer
        has_work = False
        while self._obey_commands(wait=not has_work):
            has_work = self._step()
            self._flush()

    def _step(self) -> bool:
        """Schedule, run, sample, postprocess; False if there was nothing to do. A fault ends this step's requests."""
        chunks: list[Chunk] = []
        started = self._clock()
        try:
            chunks = self._scheduler.schedule()
            if chunks:
                self._note_begun(chunks)
                logits = self._runner.run(chunks)
                samples = self._sampler.sample(logits, [chunk.sequence for chunk in chunks if chunk.is_last])
                self._postprocess(chunks, samples)
                self._scheduler.note_duration(chunks, seconds := self._clock() - started)
                self._on_step(seconds)
        except Exception as error:
            log.exception("step failed", num_running=len(chunks))
            self._give_up({chunk.sequence.request for chunk in chunks} or set(self._requests), error)
        return bool(chunks)

    def _postprocess(self, chunks: list[Chunk], samples: list[Sample]) -> None:
        """Advance every sequence of the step; end those that are done."""
        rest = iter(samples)
        broken: set[Request] = set()
        for chunk in chunks:
            sample = next(rest) if chunk.is_last else None
            self._scheduler.complete(chunk)
            if sample is None:
                continue
            if sample.token_id is None:
                broken.add(chunk.sequence.request)
            else:
                self._extend(chunk.sequence, sample.token_id, sample.logprob)
        if broken:
            self._give_up(broken, NotFiniteError())

    def _extend(self, sequence: Sequence, token_id: int, logprob: Logprob | None) -> None:
        """Add a token to an answer, or end it there."""
        sequence.has_sampled = True
        if sequence.matcher is not None:
            sequence.matcher.accept(token_id)
        if token_id in sequence.request.params.stop_ids:
            self._end(sequence, FinishReason.STOP, token_id)
            return
        sequence.append(token_id)
        self._told.append((sequence.request, Token(sequence.index, token_id, logprob)))
        self._end_if_complete(sequence)

    def _end_if_complete(self, sequence: Sequence) -> None:
        """End an answer to which nothing may be added."""
        if sequence.matcher is not None and sequence.matcher.is_complete:
            self._end(sequence, FinishReason.STOP)
        elif sequence.num_output_tokens >= sequence.request.params.max_tokens:
            self._end(sequence, FinishReason.LENGTH)

    def _end(self, sequence: Sequence, reason: FinishReason, stop_token_id: int | None = None) -> None:
        request = sequence.request
        num_tokens = sequence.num_output_tokens + (stop_token_id is not None)
        sequence.ended = Ended(sequence.index, reason, stop_token_id, num_tokens)
        self._scheduler.remove([sequence])
        self._told.append((request, sequence.ended))
        if request.is_finished:
            if request.begun is not None:
                self._forecast.note(num_tokens, self._clock() - request.begun)
            self._forget(request)
            self._told.append((request, Finished()))

    def _give_up(self, requests: set[Request], error: Exception) -> None:
        """End requests with a fault. What their blocks hold is not trusted and not left behind."""
        for request in requests & self._requests:
            self._runner.cache.clear(self._scheduler.discard(request.sequences))
            self._forget(request)
            self._told.append((request, Failed(error)))

    def _add(self, request: Request) -> None:
        self._requests.add(request)
        self._scheduler.add(request)
        for sequence in request.sequences:
            if sequence.num_output_tokens:  # taken up from another decoder, which may have been lost at the very end
                self._end_if_complete(sequence)

    def _drop(self, request: Request) -> None:
        self._scheduler.remove(request.sequences)
        if request.begun is not None and not request.is_finished:
            self._forecast.note_cut(self._clock() - request.begun)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        self._requests.discard(request)
        with self._changed:
            self._queued.pop(request, None)

    def _note_begun(self, chunks: list[Chunk]) -> None:
        """Requests whose first chunk this is wait no longer; what they found in the prefix cache is known now."""
        for chunk in chunks:
            request = chunk.sequence.request
            if request.begun is None:
                request.begun = self._clock()
                with self._changed:
                    self._queued.pop(request, None)
                begun = Begun(min(chunk.start, len(request.token_ids)), (request.begun - request.arrived) * 1000)
                self._told.append((request, begun))
        self._flush()

    def _flush(self) -> None:
        """Let what has happened be told."""
        if self._told:
            told, self._told = self._told, []
            self._deliver(told)

    def _busy_s(self, max_tokens: int) -> float:
        """Until a request that came now had its answer; 0 as long as there is a slot for it."""
        load = self.load
        num_ahead = load.num_running + len(self._queued) - load.num_slots + 1
        return self._forecast.seconds(max_tokens, num_ahead, load.num_slots) if num_ahead > 0 else 0.0

    def _command(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _obey_commands(self, *, wait: bool) -> bool:
        """Do what others have asked for; `wait` for that if nothing can be computed. False when told to stop."""
        self.load = self._scheduler.load()
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._commands or self._stopping, self._scheduler.patience_s)
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        return not self._stopping


def _retry_s(seconds: float) -> float:
    return min(max(seconds, MIN_RETRY_S), MAX_RETRY_S)
