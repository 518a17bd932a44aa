"""What came of one hostile input."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from tests.harness import Failure, failure


@dataclass(frozen=True, slots=True)
class Outcome:
    """`refused_s`: how long the call that was refused took, by its client's clock; None when it was answered.

    `problem`: what was not as promised.
    """

    refused_s: float | None = None
    problem: str | None = None


class Attempt:
    """Calls of which the last may be refused; it alone is timed."""

    def __init__(self) -> None:
        self._began = 0.0

    def begins(self) -> None:
        """The next call goes out now."""
        self._began = time.monotonic()

    def refused(self, failed: Failure, judge: Callable[[Failure], str | None]) -> Outcome:
        """The call that began last was refused."""
        return Outcome(time.monotonic() - self._began, judge(failed))


async def refusal(call: Awaitable[object], judge: Callable[[Failure], str | None]) -> Outcome:
    """Of a call that must be refused."""
    attempt = Attempt()
    attempt.begins()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return attempt.refused(failure(error), judge)
    return Outcome(problem="not refused")


def blames(failed: Failure, reason: str | None, path: str) -> str | None:
    """What is wrong with a file's refusal: it must be the caller's fault, below a path, for a reason."""
    if failed.code is not grpc.StatusCode.INVALID_ARGUMENT or not failed.fields:
        return str(failed)
    well = reason in failed.fields.values() and all(name.startswith(path) for name in failed.fields)
    return None if well else f"{failed.fields} for {reason} at {path}"


def names(failed: Failure, path: str) -> str | None:
    """What is wrong with the refusal of a lie: it must be the caller's fault, and name a field below a path."""
    well = failed.code is grpc.StatusCode.INVALID_ARGUMENT and any(name.startswith(path) for name in failed.fields)
    return None if well else f"{failed} for {path}"
