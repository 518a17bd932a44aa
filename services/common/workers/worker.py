"""The service's side of one worker process and its one job."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from services.common.workers.allowance import is_used_up
from services.common.workers.errors import JobRefused, WorkerCrashed, WorkerTooCostly
from services.common.workers.files import FileBundle
from services.common.workers.wire import HEAD_BYTES, MAX_PACKET_BYTES, READY, TAKEN, pack, unpack

_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply's plain values, and where its bulk data lies in the job's output."""

    values: dict[str, Any]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done: a job's name, its arguments as plain values, and the sizes of its files in bytes."""

    job: str
    arguments: dict[str, Any]
    file_sizes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Costs:
    """Most time that a job may take: on the clock for one reply, and of CPU for all of them."""

    timeout_s: float
    cpu_s: float


class Worker:
    """A process that waits for its job."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._handle = -1

    async def ready(self) -> None:
        """Wait for its first word. WorkerCrashed when it never comes."""
        async with asyncio.timeout(_READY_S):
            await _readable(self._sock)
        message, descriptors, _, _ = socket.recv_fds(self._sock, len(READY), 1)
        if not message or not descriptors:
            raise WorkerCrashed("the worker did not start")
        self._handle = descriptors[0]

    def kill(self) -> None:
        """End it, whatever it is doing."""
        if self._handle >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = -1
        self._sock.close()

    async def give(self, order: Order, files: FileBundle, out: int, count: int) -> None:
        """Send the job and ask for `count` replies, so that the process need not wait in between. OSError when it is
        gone. The order stands behind the files, as it may name thousands.
        """
        packed = pack(asdict(order))
        os.pwrite(files.fd, packed, files.num_bytes)
        place = pack({"order_offset": files.num_bytes, "order_bytes": len(packed)})
        socket.send_fds(self._sock, [place], [files.fd, out])
        self.ask(count)
        await _readable(self._sock)
        if self._sock.recv(len(TAKEN)) != TAKEN:
            raise ConnectionResetError

    def ask(self, count: int) -> None:
        """Ask for `count` replies."""
        self._sock.send(str(count).encode())

    async def hear(self) -> dict[str, Any]:
        """Its next message; an empty one at its end. ValueError for nonsense."""
        await _readable(self._sock)
        packet = self._sock.recv(MAX_PACKET_BYTES)
        return unpack(packet) if packet else {}


class Job:
    """A job under way. Its process starts with the first replies that are asked for; `out` is a file in memory that
    holds the bulk data of those taken last.
    """

    def __init__(
        self, hire: Callable[[int], Awaitable[Worker]], places: asyncio.Semaphore, out: int, costs: Costs
    ) -> None:
        self.out = out
        self._hire = hire
        self._places = places
        self._costs = costs
        self._worker: Worker | None = None
        self._spent_s = 0.0

    async def take(self, count: int) -> AsyncGenerator[Answer]:
        """Up to `count` more replies, each as soon as it is there; fewer at the end. Raises JobRefused or WorkerError.

        What one has in `out` stays there until replies are asked for again.
        """
        async with self._places:
            is_first = self._worker is None
            worker = self._worker = self._worker or await self._hire(count)
            started = monotonic()
            try:
                if not is_first:
                    worker.ask(count)
                async with aclosing(self._hear(worker, count)) as answers:
                    async for answer in answers:
                        yield answer
            except TimeoutError as error:
                raise WorkerTooCostly(f"the media take more than {self._costs.timeout_s:g} s to read") from error
            except (OSError, EOFError, ValueError) as error:
                raise self._ended(monotonic() - started) from error
            finally:
                self._spent_s += monotonic() - started

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._worker is not None:
            self._worker.kill()

    async def _hear(self, worker: Worker, count: int) -> AsyncGenerator[Answer]:
        offset = HEAD_BYTES
        for _ in range(count):
            async with asyncio.timeout(self._costs.timeout_s):
                message = await worker.hear()
            if "end" in message:
                break
            values, num_bytes = _read(message)
            yield Answer(values, offset, num_bytes)
            offset += num_bytes

    def _ended(self, turn_s: float) -> WorkerCrashed | WorkerTooCostly:
        """Why a process is gone. The kernel's word is the zygote's, so the time that it had has to tell."""
        if is_used_up(self.out):
            return WorkerTooCostly("the media take longer to read than media of their size may")
        if self._spent_s + turn_s >= self._costs.cpu_s:
            return WorkerTooCostly(f"the media take more than {self._costs.cpu_s:g} s of CPU to read")
        return WorkerCrashed("the media make their reader crash")


def _read(message: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A reply's values and bytes. EOFError when there is none, ValueError when it is not one."""
    if not message:
        raise EOFError
    error, values, num_bytes = message.get("error"), message.get("values"), message.get("num_bytes")
    if isinstance(error, dict):
        if not error:
            raise WorkerTooCostly("the media take more memory to read than they may")
        raise JobRefused(error)
    if not isinstance(values, dict) or not isinstance(num_bytes, int) or num_bytes < 0:
        raise ValueError("not a reply")
    return values, num_bytes


async def _readable(sock: socket.socket) -> None:
    """Wait until something can be received, an end included."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
