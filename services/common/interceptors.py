"""The one place where exceptions of handlers become statuses."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from services.common.errors import to_status
from services.common.slow_reader import write

DISCARD_S = 1.0

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Lets handlers of all four shapes simply raise, and ends streams that are not read for `slow_reader_timeout_s`."""

    def __init__(self, slow_reader_timeout_s: float) -> None:
        self._slow_reader_timeout_s = slow_reader_timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return handler and _guarded(handler, handler_call_details.method, self._slow_reader_timeout_s)


async def discard(requests: AsyncIterator[Any]) -> None:
    """Read, and drop, what a refused caller still sends: it would see INTERNAL if its call ended meanwhile."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            async for _ in requests:
                pass


def _guarded(handler: Handler, method: str, slow_reader_timeout_s: float) -> Handler:
    """The same handler with its exceptions translated."""
    behaviour = behaviour_of(handler)

    async def answer(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            if handler.request_streaming:
                await discard(request)
            await _abort(error, context, method)

    async def stream(request: Any, context: Context) -> None:
        try:
            await _write_all(behaviour(request, context), context, slow_reader_timeout_s)
        except Exception as error:
            await _abort(error, context, method)

    return with_behaviour(handler, stream if handler.response_streaming else answer)


def behaviour_of(handler: Handler) -> Behaviour:
    """The function behind a handler of any shape."""
    behaviour: Behaviour = getattr(handler, _shape(handler))
    return behaviour


def with_behaviour(handler: Handler, behaviour: Behaviour) -> Handler:
    """A handler of the same shape and messages around another function."""
    make: Callable[..., Handler] = getattr(grpc, f"{_shape(handler)}_rpc_method_handler")
    return make(
        behaviour, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )


def _shape(handler: Handler) -> str:
    return "_".join(
        "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
    )


async def _write_all(
    responses: AsyncGenerator[Any, None] | Awaitable[None], context: Context, slow_reader_timeout_s: float
) -> None:
    """Drive a streaming handler: a generator of responses, or a coroutine that writes them itself."""
    if isinstance(responses, AsyncGenerator):
        async with contextlib.aclosing(
            responses
        ):  # a cancelled call runs the handler's `finally` now, not at collection
            async for response in responses:
                await write(context, response, slow_reader_timeout_s)
    else:
        await responses


async def _abort(error: Exception, context: Context, method: str) -> None:
    """End the call with the error's status. CancelledError is no Exception and never comes here."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    status = to_status(error)
    if status.code == grpc.StatusCode.INTERNAL.value[0]:
        log.error("internal error", method=method, exc_info=error)
    await context.abort_with_status(rpc_status.to_status(status))
