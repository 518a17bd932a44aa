"""One place where every call is counted, timed and given its span.

Stands behind ErrorInterceptor, so that it sees what handlers raise, and before those that find out who calls.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from time import perf_counter
from typing import Any

import grpc
import structlog

from services.common.errors import to_status
from services.common.interceptors import Context, Handler, behaviour_of, with_behaviour
from services.common.telemetry.attributes import Attribute
from services.common.telemetry.metrics import RpcMetrics
from services.common.telemetry.spans import TRACEPARENT, Span, StartTrace, failure_of, iterate_under, under

_PLUMBING = "/grpc."  # health and reflection: probes would drown the calls
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """Measures the calls of diptych's own services."""

    def __init__(self, metrics: RpcMetrics, start_trace: StartTrace) -> None:
        self._metrics, self._start_trace = metrics, start_trace

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if not handler or method.startswith(_PLUMBING):
            return handler
        return self._measured(handler, method, _traceparent(handler_call_details))

    def _measured(self, handler: Handler, method: str, traceparent: str) -> Handler:
        behaviour = behaviour_of(handler)

        async def answer(request: Any, context: Context) -> Any:
            with self._call(method, traceparent) as span, under(span):
                return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncGenerator[Any]:  # one that yields nothing will do
            with self._call(method, traceparent) as span:
                responses = behaviour(request, context)
                if not isinstance(responses, AsyncGenerator):
                    with under(span):
                        await responses
                    return
                async with aclosing(iterate_under(span, responses)) as events:
                    async for response in events:
                        yield response

        return with_behaviour(handler, stream if handler.response_streaming else answer)

    @contextmanager
    def _call(self, method: str, traceparent: str) -> Iterator[Span]:
        """A call from its start to its end, whichever that is."""
        span = self._start_trace(method.removeprefix("/"), traceparent)
        service, _, name = method.removeprefix("/").partition("/")
        span.set({Attribute.RPC_SYSTEM: "grpc", Attribute.RPC_SERVICE: service, Attribute.RPC_METHOD: name})
        if span.trace_id:
            structlog.contextvars.bind_contextvars(trace_id=span.trace_id)  # of this call alone: it has its own task
        code, failure, started = grpc.StatusCode.OK, None, perf_counter()
        try:
            with self._metrics.running.labels(name).track_inprogress():
                yield span
        except BaseException as error:
            code, failure = _code_of(error), failure_of(error)
            self._metrics.failed(name, failure)
            raise
        finally:
            self._metrics.ended(name, code.name, perf_counter() - started)
            span.set({Attribute.RPC_STATUS: code.value[0]})
            span.end(failure)


def _code_of(error: BaseException) -> grpc.StatusCode:
    if isinstance(error, Exception):
        return _CODES[to_status(error).code]
    return grpc.StatusCode.CANCELLED


def _traceparent(call: grpc.HandlerCallDetails) -> str:
    values = [value for name, value in call.invocation_metadata or () if name == TRACEPARENT]
    return str(values[0]) if len(values) == 1 else ""
