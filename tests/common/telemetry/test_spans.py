"""Spans where nothing is recorded, and how tracing is asked for."""

import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import pytest

from services.common.telemetry.attributes import Attributes
from services.common.telemetry.export import TracingError, open_tracing
from services.common.telemetry.spans import (
    Span,
    current_span,
    start_unrecorded,
    trace_metadata,
    traced,
    under,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@dataclass
class Seen:
    """A span that remembers what was made of it."""

    name: str = "call"
    children: list["Seen"] = field(default_factory=list)
    ended: list[str | None] = field(default_factory=list)
    traceparent: str = ""
    trace_id: str = ""

    def child(self, name: str, *, start_ns: int | None = None) -> "Seen":  # noqa: ARG002 -- a span's signature
        self.children.append(Seen(name))
        return self.children[-1]

    def set(self, attributes: Attributes) -> None:
        """Not looked at here."""

    def end(self, failure: str | None = None, *, end_ns: int | None = None) -> None:  # noqa: ARG002
        self.ended.append(failure)


@pytest.fixture
def call() -> Iterator[Seen]:
    """The span of the call that a test works for."""
    span = Seen()
    with under(span):
        yield span


def test_without_tracing_the_callers_trace_is_passed_on() -> None:
    """Nothing is recorded, and the next service hears of the same trace."""
    span: Span = start_unrecorded("call", TRACEPARENT)
    with under(span):
        assert trace_metadata() == (("traceparent", TRACEPARENT),)
        assert current_span().child("step").trace_id == TRACE_ID


@pytest.mark.parametrize(
    "given", ["", "no", TRACEPARENT.replace(TRACE_ID, "0" * 32), "ff" + TRACEPARENT[2:], TRACEPARENT + "\n"]
)
def test_a_malformed_traceparent_goes_no_further(given: str) -> None:
    """What a client may make up reaches neither logs nor other services."""
    with under(start_unrecorded("call", given)):
        assert trace_metadata() == ()
        assert current_span().trace_id == ""


async def test_steps_below_a_traced_generator_are_its_children(call: Seen) -> None:
    """What a generator does is below its span; what its consumer does between is not."""

    @traced("step")
    def step() -> None:
        """Work."""

    @traced("stream")
    async def stream() -> AsyncGenerator[int]:
        step()
        yield 1
        step()

    async for _ in stream():
        assert current_span() is call
    (span,) = call.children
    assert [child.name for child in span.children] == ["step", "step"]
    assert span.ended == [None]


async def test_a_generator_that_is_left_has_not_failed(call: Seen) -> None:
    """Leaving early ends the span, once, without a failure."""

    @traced("stream")
    async def stream() -> AsyncGenerator[int]:
        yield 1
        yield 2

    events = stream()
    await anext(events)
    await events.aclose()
    assert call.children[0].ended == [None]


def test_a_failure_ends_its_span_by_name_and_not_by_text(call: Seen) -> None:
    """Only the class is told, since a text may quote a request."""

    @traced("step")
    def step() -> None:
        raise ValueError("what a user wrote")

    with pytest.raises(ValueError, match="wrote"):
        step()
    assert call.children[0].ended == ["ValueError"]


@pytest.mark.parametrize("off", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_tracing_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, off: dict[str, str]) -> None:
    """Without an endpoint, or where the standard switches say so, nothing is recorded."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    for name, value in {**off, **({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} if off else {})}.items():
        monkeypatch.setenv(name, value)
    assert open_tracing("gateway").start is start_unrecorded


def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails with the variable's name."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with pytest.raises(TracingError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        open_tracing("gateway")


def test_services_start_without_opentelemetry() -> None:
    """The extra is not needed, and not even imported, unless traces are asked for; then its absence is said."""
    code = """
import os, sys
sys.modules["opentelemetry"] = None
import gateway.__main__
from services.common.telemetry.export import TracingError, open_tracing
open_tracing("gateway")
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4317"
try:
    open_tracing("gateway")
except TracingError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "diptych[telemetry]" in result.stdout
