"""What the decoder tells of its engine and of each request, from the events that a request's caller gets.

The engine's thread does nothing for it but observe each step's duration: its load is read when it is asked for, and
events are looked at where they arrive, in the event loop's thread.
"""

from collections.abc import Callable
from time import monotonic

from prometheus_client import CollectorRegistry

from services.common.telemetry import catalogue
from services.common.telemetry.attributes import Attribute
from services.common.telemetry.spans import NOTHING, Span, current_span
from services.decoder.scheduler import Load
from services.decoder.sequence import Begun, Event, Failed, Finished, Token


class DecoderMetrics:
    """The decoder's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.step = catalogue.DECODER_STEP.on(registry)
        self.queue_time = catalogue.DECODER_QUEUE_TIME.on(registry)
        self.first_token = catalogue.DECODER_FIRST_TOKEN.on(registry)
        self.inter_token = catalogue.DECODER_INTER_TOKEN.on(registry)
        self.prompt_tokens = catalogue.DECODER_PROMPT_TOKENS.on(registry)
        self.prefix_hits = catalogue.DECODER_PREFIX_HITS.on(registry)
        self.generation_tokens = catalogue.DECODER_GENERATION_TOKENS.on(registry)

    def watch(self, load: Callable[[], Load], num_blocks: int) -> None:
        """Where to read the engine's load."""
        catalogue.DECODER_RUNNING.read_by(self._registry, lambda: load().num_running)
        catalogue.DECODER_WAITING.read_by(self._registry, lambda: load().num_waiting)
        catalogue.DECODER_BLOCKS_USED.read_by(self._registry, lambda: load().num_used_blocks)
        catalogue.DECODER_PREEMPTIONS.read_by(self._registry, lambda: load().num_preemptions)
        catalogue.DECODER_BLOCKS.on(self._registry).set(num_blocks)


class RequestTelemetry:
    """One request's phases, each a span: decode queue, prefill, decode."""

    def __init__(self, metrics: DecoderMetrics, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._call = current_span()
        self._phase: Span = self._call.child("decode queue")
        self._arrived = monotonic()
        self._last_token: dict[int, float] = {}  # by choice

    def note(self, event: Event) -> None:
        """Take an event's facts."""
        match event:
            case Begun():
                self._begin(event)
            case Token():
                self._add(event.index)
            case Failed():
                self.end("INTERNAL")
            case Finished():
                self.end()

    def end(self, failure: str | None = None) -> None:
        """The phase that the request was in is its last. Nothing after that."""
        self._phase.end(failure)
        self._phase = NOTHING

    def _begin(self, begun: Begun) -> None:
        metrics = self._metrics
        metrics.queue_time.observe(begun.queue_ms / 1000)
        metrics.prompt_tokens.inc(self._num_prompt_tokens)
        metrics.prefix_hits.inc(begun.num_cached_tokens)
        self._enter("prefill")
        self._phase.set({Attribute.CACHED_TOKENS: begun.num_cached_tokens})

    def _add(self, index: int) -> None:
        now, before = monotonic(), self._last_token.get(index)
        if before is not None:
            self._metrics.inter_token.observe(now - before)
        elif not self._last_token:
            self._metrics.first_token.observe(now - self._arrived)
            self._enter("decode")
        self._last_token[index] = now
        self._metrics.generation_tokens.inc()

    def _enter(self, name: str) -> None:
        self._phase.end()
        self._phase = self._call.child(name)
