"""Traces recorded with OpenTelemetry's SDK and sent to a collector by OTLP over gRPC.

The standard variables say where and how (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables);
with none of them, nothing is recorded. The SDK is the extra `telemetry` and is imported only when it is needed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from services.common.telemetry.attributes import Attribute, Attributes
from services.common.telemetry.spans import TRACEPARENT, Span, StartTrace, start_unrecorded

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class TracingError(ValueError):
    """Tracing is asked for and cannot be had. Names the variable."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """How this process starts its traces, and what sends the rest of them when it ends."""

    start: StartTrace = start_unrecorded
    close: Callable[[], None] = lambda: None


NO_TRACING = Tracing()


def open_tracing(service: str) -> Tracing:
    """As the environment says. Raises TracingError when that cannot be done."""
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None or _is_off():
        return NO_TRACING
    protocol = next((name for name in PROTOCOLS if os.environ.get(name)), None)
    if protocol is not None and os.environ[protocol] != "grpc":
        raise TracingError(f"{protocol}: traces are sent by grpc alone")
    try:
        return _recording(service)
    except ImportError as error:
        raise TracingError(f"{endpoint}: traces need diptych[telemetry], which is not installed") from error


def _is_off() -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return disabled or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"


def _recording(service: str) -> Tracing:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 -- see above
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own_name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"diptych-{service}"}
    provider = TracerProvider(resource=Resource.create({"service.version": version("diptych"), **own_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(_Starter(provider.get_tracer("diptych")), provider.shutdown)


class _Starter:
    """Starts a server's span, below the caller's where there is a traceparent."""

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    def __call__(self, name: str, traceparent: str) -> Span:
        from opentelemetry.trace import SpanKind  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        context = TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent})
        return Recorded(self._tracer, self._tracer.start_span(name, context, kind=SpanKind.SERVER))


class Recorded:
    """A span of the SDK."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: "Tracer", span: "OtelSpan") -> None:
        self._tracer, self._span = tracer, span

    @property
    def traceparent(self) -> str:
        """What the next service is told."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    @property
    def trace_id(self) -> str:
        """Thirty-two hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def child(self, name: str, *, start_ns: int | None = None) -> "Recorded":
        """A span below this one."""
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

        context = set_span_in_context(self._span)
        return Recorded(self._tracer, self._tracer.start_span(name, context, start_time=start_ns))

    def set(self, attributes: Attributes) -> None:
        """Note facts that are on the list."""
        values: dict[str, Any] = {name.value: value for name, value in attributes.items()}
        self._span.set_attributes(values)

    def end(self, failure: str | None = None, *, end_ns: int | None = None) -> None:
        """Once; `failure` is a reason, never a text."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        if failure is not None:
            self.set({Attribute.ERROR_TYPE: failure})
            self._span.set_status(Status(StatusCode.ERROR, failure))
        self._span.end(end_ns)
