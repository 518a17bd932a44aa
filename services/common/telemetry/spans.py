"""Spans without a need for OpenTelemetry: where no trace is recorded, these cost a look at a context variable.

The current span is the task's own. What starts under it is its child, and a call to another service carries its
`traceparent` (https://www.w3.org/TR/trace-context/). With tracing off, a caller's traceparent is still passed on and
logged, so that one trace id finds the lines of all services.
"""

import asyncio
import functools
import inspect
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast

from services.common.telemetry.attributes import Attributes

TRACEPARENT = "traceparent"
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Span(Protocol):
    """One piece of work. Moments are nanoseconds since the epoch, now where they are left out."""

    @property
    def traceparent(self) -> str: ...
    @property
    def trace_id(self) -> str: ...
    def child(self, name: str, *, start_ns: int | None = None) -> "Span": ...
    def set(self, attributes: Attributes) -> None: ...
    def end(self, failure: str | None = None, *, end_ns: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """No span; remembers the caller's traceparent, if there was one."""

    traceparent: str = ""

    @property
    def trace_id(self) -> str:
        """Thirty-two hexadecimal digits, or nothing."""
        found = _FORM.fullmatch(self.traceparent)
        return found[1] if found else ""

    def child(self, name: str, *, start_ns: int | None = None) -> "Unrecorded":  # noqa: ARG002 -- a span's signature
        """Itself: whatever is below is not recorded either."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Nothing is kept."""

    def end(self, failure: str | None = None, *, end_ns: int | None = None) -> None:
        """Nothing is kept."""


StartTrace = Callable[[str, str], Span]
"""A server's span by its name and the caller's traceparent, which may be empty."""

NOTHING: Final = Unrecorded()
_current: ContextVar[Span] = ContextVar("span", default=NOTHING)


def start_unrecorded(_name: str, traceparent: str) -> Span:
    """What starts a trace where none is recorded. A malformed traceparent is dropped, as the recommendation says."""
    return Unrecorded(traceparent if _FORM.fullmatch(traceparent) else "")


def current_span() -> Span:
    """The span under which this task works."""
    return _current.get()


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """What a call to another service carries."""
    traceparent = current_span().traceparent
    return ((TRACEPARENT, traceparent),) if traceparent else ()


@contextmanager
def under(span: Span) -> Iterator[Span]:
    """Make `span` the current one; not around a `yield` of an async generator, whose consumer would work under it."""
    token = _current.set(span)
    try:
        yield span
    finally:
        _current.reset(token)


@contextmanager
def recorded(name: str) -> Iterator[Span]:
    """A child of the current span around a block; ends with the failure that leaves the block."""
    span = current_span().child(name)
    failure: str | None = None
    try:
        with under(span):
            yield span
    except BaseException as error:
        failure = failure_of(error)
        raise
    finally:
        span.end(failure)


async def iterate_under(span: Span, events: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """What `events` gives, each made under `span`; the consumer is not."""
    async with aclosing(events):
        while True:
            with under(span):
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
            yield event


def traced(name: str) -> Callable[[F], F]:
    """Record each run of a function, a coroutine function or an async generator function as a span."""

    def decorate(function: F) -> F:
        if inspect.isasyncgenfunction(function):
            return cast("F", _traced_generator(name, function))
        if inspect.iscoroutinefunction(function):
            return cast("F", _traced_coroutine(name, function))

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with recorded(name):
                return function(*args, **kwargs)

        return cast("F", run)

    return decorate


def _traced_coroutine(name: str, function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    @functools.wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with recorded(name):
            return await function(*args, **kwargs)

    return run


def _traced_generator(name: str, function: Callable[P, AsyncGenerator[T]]) -> Callable[P, AsyncIterator[T]]:
    @functools.wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        span = current_span().child(name)
        failure: str | None = None
        try:
            async with aclosing(iterate_under(span, function(*args, **kwargs))) as events:
                async for event in events:
                    yield event
        except GeneratorExit:  # who asked has heard enough
            raise
        except BaseException as error:
            failure = failure_of(error)
            raise
        finally:
            span.end(failure)

    return run


def failure_of(error: BaseException) -> str:
    """A failure's name: its reason, CANCELLED for who was stopped from outside, else its class. Never its text."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, str) and reason.isupper():
        return reason
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return type(error).__name__


def wall_ns(monotonic_s: float) -> int:
    """A moment of the monotonic clock as nanoseconds since the epoch."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)
