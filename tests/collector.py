"""A stand-in for an OpenTelemetry collector: takes spans by OTLP over gRPC and keeps them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.harness import wait_until


@dataclass(frozen=True)
class SpanSeen:
    """One span as it was sent. `failure` is None where the status is not an error."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    failure: str | None
    start_ns: int
    end_ns: int


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What has come so far."""

    address: str = ""
    spans: list[SpanSeen] = field(default_factory=list)
    raw: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 -- the RPC's name
        with self._lock:
            self.raw += request.SerializeToString()
            self.spans += _spans(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str, *names: str) -> list[SpanSeen]:
        """The spans of one trace, once all of `names` are among them."""

        def found() -> list[SpanSeen]:
            return [span for span in list(self.spans) if span.trace_id == trace_id]

        wait_until(lambda: set(names) <= {span.name for span in found()}, f"spans {names} in {trace_id}")
        return found()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a service send its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.address}", "OTEL_BSP_SCHEDULE_DELAY": "50"}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    server, collector = grpc.server(ThreadPoolExecutor(2)), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


def _spans(request: Any) -> Iterator[SpanSeen]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SpanSeen(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _attributes(span.attributes),
                    span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
