"""What the gateway tells of each conversation, taken from the events that its client gets."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from time import perf_counter

import structlog
from diptych.v1 import chat_service_pb2, content_pb2, generation_pb2
from prometheus_client import CollectorRegistry

from services.common.telemetry import catalogue
from services.common.telemetry.attributes import Attribute, Attributes
from services.common.telemetry.spans import Span, current_span, failure_of, iterate_under

Event = chat_service_pb2.Started | chat_service_pb2.TextDelta | chat_service_pb2.Finished

_CACHE = {
    content_pb2.CACHE_RESULT_HIT: "hit",
    content_pb2.CACHE_RESULT_MISS: "miss",
    content_pb2.CACHE_RESULT_PARTIAL: "partial",
}

_SOURCES = {"file": "file", "http": "http", "https": "http", "digest": "digest"}

log = structlog.get_logger()


class GatewayMetrics:
    """The gateway's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = catalogue.GATEWAY_RUNNING.on(registry)
        self.first_token = catalogue.GATEWAY_FIRST_TOKEN.on(registry)
        self.latency = catalogue.GATEWAY_LATENCY.on(registry)
        self.prompt_tokens = catalogue.GATEWAY_PROMPT_TOKENS.on(registry)
        self.media_tokens = catalogue.GATEWAY_MEDIA_TOKENS.on(registry)
        self.generation_tokens = catalogue.GATEWAY_GENERATION_TOKENS.on(registry)
        self.media_items = catalogue.GATEWAY_MEDIA_ITEMS.on(registry)
        self.media_bytes = catalogue.GATEWAY_MEDIA_BYTES.on(registry)
        self.fetch = catalogue.GATEWAY_FETCH.on(registry)
        self._quota_refusals = catalogue.GATEWAY_QUOTA_REFUSALS.on(registry)

    def media_came(self, which: str | None, uri: str, num_bytes: int) -> None:
        """A file of `num_bytes`, by the field that brought it."""
        scheme = uri.partition(":")[0].lower() if which == "uri" else which
        self.media_bytes.labels(_SOURCES.get(scheme or "", "data")).inc(num_bytes)

    def quota_refused(self, quota: str) -> None:
        """A call or conversation was over a tenant's quota."""
        self._quota_refusals.labels(quota).inc()

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Time one fetch."""
        started, result = perf_counter(), "failed"
        try:
            yield
            result = "ok"
        finally:
            self.fetch.labels(result).observe(perf_counter() - started)


async def observed(events: AsyncGenerator[Event], metrics: GatewayMetrics, request_id: str) -> AsyncGenerator[Event]:
    """The same events; the conversation is a span, is counted, and leaves one line in the log."""
    structlog.contextvars.bind_contextvars(request_id=request_id)  # each conversation runs in a task of its own
    conversation = _Conversation(metrics, current_span().child("chat"), request_id)
    failure: str | None = None
    with metrics.running.track_inprogress():
        try:
            async with aclosing(iterate_under(conversation.span, events)) as seen:
                async for event in seen:
                    conversation.note(event)
                    yield event
        except BaseException as error:
            failure = failure_of(error)
            raise
        finally:
            conversation.end(failure)


class _Conversation:
    """One, from its first event to its last."""

    def __init__(self, metrics: GatewayMetrics, span: Span, request_id: str) -> None:
        self.span = span
        self._metrics = metrics
        self._started_at = perf_counter()
        self._first_token_s: float | None = None
        self._num_tokens = 0
        span.set({Attribute.OPERATION: "chat", Attribute.PROVIDER: "diptych", Attribute.RESPONSE_ID: request_id})

    def note(self, event: Event) -> None:
        """Take an event's facts."""
        if isinstance(event, chat_service_pb2.Started):
            self.span.set(_asked(event))
        elif isinstance(event, chat_service_pb2.Finished):
            self._finish(event)
        elif self._first_token_s is None:
            self._first_token_s = perf_counter() - self._started_at
            self._metrics.first_token.observe(self._first_token_s)

    def end(self, failure: str | None) -> None:
        """The last word, whatever the conversation came to."""
        self.span.end(failure)
        first = self._first_token_s
        log.info(
            "conversation ended",
            reason=failure or "FINISHED",
            total_ms=_ms(perf_counter() - self._started_at),
            num_tokens=self._num_tokens,
            time_to_first_token_ms=None if first is None else _ms(first),
        )

    def _finish(self, finished: chat_service_pb2.Finished) -> None:
        metrics, usage = self._metrics, finished.usage
        metrics.latency.observe(perf_counter() - self._started_at)
        metrics.prompt_tokens.inc(usage.num_prompt_tokens)
        metrics.media_tokens.inc(usage.num_media_tokens)
        metrics.generation_tokens.inc(usage.num_completion_tokens)
        for result in finished.media_cache:
            metrics.media_items.labels(_cache(result)).inc()
        self._num_tokens = usage.num_completion_tokens
        self.span.set(_answered(finished))


def _asked(started: chat_service_pb2.Started) -> Attributes:
    chosen = started.generation
    return {
        Attribute.REQUEST_MODEL: started.model,
        Attribute.MAX_TOKENS: chosen.max_tokens,
        Attribute.TEMPERATURE: chosen.temperature,
        Attribute.TOP_P: chosen.top_p,
        Attribute.TOP_K: chosen.top_k,
        Attribute.CHOICE_COUNT: chosen.num_choices,
        Attribute.INPUT_TOKENS: started.num_prompt_tokens,
        Attribute.MEDIA_COUNT: len(started.media),
    }


def _answered(finished: chat_service_pb2.Finished) -> Attributes:
    reasons = [generation_pb2.FinishReason.Name(end.finish_reason) for end in finished.choices]
    return {
        Attribute.OUTPUT_TOKENS: finished.usage.num_completion_tokens,
        Attribute.CACHED_TOKENS: finished.usage.num_cached_tokens,
        Attribute.FINISH_REASONS: [reason.removeprefix("FINISH_REASON_").lower() for reason in reasons],
        Attribute.MEDIA_CACHE: [_cache(result) for result in finished.media_cache],
    }


def _cache(result: content_pb2.CacheResult) -> str:
    return _CACHE.get(result, "unknown")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
