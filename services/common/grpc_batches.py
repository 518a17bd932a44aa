"""Lets grpc.aio free what it hands to its core.

Up to 1.85 it frees the operations of a batch only where a task waits for them and they succeed
(https://github.com/grpc/grpc/issues/43360). Those of calls that are cancelled often do neither, and a hundred bytes
here and there keep whole pages from the system. Here a batch is ended when the core is done with it, whoever waits.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # not in the stubs: it is no public part

LAST_KNOWN = (1, 85)  # tests/common/test_grpc_batches.py says whether a later version needs this too
_Execute = Callable[[Any, tuple[Any, ...], Any], Coroutine[Any, Any, None]]


def free_every_batch() -> None:
    """From now on, in this process. Leaves a grpc.aio alone that is later than LAST_KNOWN."""
    if tuple(map(int, grpc.__version__.split(".")[:2])) > LAST_KNOWN:
        return
    execute: _Execute = cygrpc.execute_batch

    async def execute_batch(call: Any, operations: tuple[Any, ...], loop: asyncio.AbstractEventLoop) -> None:
        batch = _Batch(loop)
        batch.start(execute(call, operations, batch))
        await batch.ended

    cygrpc.execute_batch = execute_batch  # its callers look it up each time


class _Batch:
    """Stands for the loop and for the future by which grpc.aio's own coroutine waits for the core.

    When the core tells it the outcome, the coroutine goes on in any case, to its end: that reads what has come, and
    frees.
    """

    __slots__ = ("_coroutine", "_loop", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ended: asyncio.Future[None] = loop.create_future()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Hand the operations to the core. Raises grpc.aio's error if it does not take them."""
        self._coroutine = coroutine
        coroutine.send(None)

    def create_future(self) -> "_Batch":
        """The loop's part."""
        return self

    def call_soon_threadsafe(self, tell: Callable[..., object], *outcome: object) -> None:
        """The loop's part: a queue's events come in the thread of any loop."""
        if asyncio.get_running_loop() is self._loop:
            tell(*outcome)
        else:
            self._loop.call_soon_threadsafe(tell, *outcome)

    def __await__(self) -> Generator[None]:
        yield

    def cancelled(self) -> bool:
        """Never: who waits for `ended` may be, and the core does not care."""
        return False

    def set_result(self, _result: None) -> None:
        """The core has done all of it."""
        self._end(None)

    def set_exception(self, error: Exception) -> None:
        """The core has not."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        try:
            self._coroutine.send(None)
        except StopIteration:
            pass
        except Exception as failure:
            error = error or failure
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
