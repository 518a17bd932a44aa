"""The worker's side: say ready, get one job, answer what is asked for, end."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.workers.allowance import Allowance, TimedAllowance
from services.common.workers.confinement import Limits, confine
from services.common.workers.wire import HEAD_BYTES, MAX_PACKET_BYTES, READY, TAKEN, pack, unpack


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a job: plain values, and bulk data that goes through shared memory."""

    values: dict[str, Any]
    buffers: Sequence[memoryview] = ()


class Refusal(Exception):  # noqa: N818 -- an answer
    """A job's own error, as plain values."""

    def __init__(self, **error: object) -> None:
        super().__init__()
        self.error = error


class Files(Sequence[bytes]):
    """The files of a bundle as a worker sees them, each read when it is asked for."""

    def __init__(self, fd: int, sizes: Sequence[int]) -> None:
        self._fd, self._sizes = fd, sizes
        self._starts = [0]
        for size in sizes:
            self._starts.append(self._starts[-1] + size)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self._sizes):
            raise IndexError(index)
        return os.pread(self._fd, self._sizes[index], self._starts[index])


JobFunction = Callable[[dict[str, Any], Files, Allowance], Iterator[Reply]]
"""A job: its arguments and files to its replies, each made when it is asked for; it tells the allowance what its steps
are worth. May raise Refusal."""


def run_worker(sock: socket.socket, jobs: Mapping[str, JobFunction], limits: Limits) -> None:
    """Do one job. The limits hold before it is received."""
    _silence()
    handle = os.pidfd_open(os.getpid())
    confine(limits)
    socket.send_fds(sock, [READY], [handle])
    os.close(handle)
    packet, descriptors, _, _ = socket.recv_fds(sock, MAX_PACKET_BYTES, 2)
    if not packet:
        return
    place = unpack(packet)
    sock.send(TAKEN)  # from here on the job is to blame for what happens to the process
    source, out = descriptors
    order = unpack(os.pread(source, place["order_bytes"], place["order_offset"]))
    allowance = TimedAllowance(out, slack_s=limits.slack_s, total_s=limits.cpu_s)
    replies = jobs[order["job"]](order["arguments"], Files(source, order["file_sizes"]), allowance)
    while request := sock.recv(64):
        _answer(sock, replies, int(request), out)


def _answer(sock: socket.socket, replies: Iterator[Reply], count: int, out: int) -> None:
    """Up to `count` replies; "end" in the place of the first that is not there."""
    offset = HEAD_BYTES
    for _ in range(count):
        message, buffers = _next(replies)
        size = sum(len(buffer) for buffer in buffers)
        for buffer in buffers:
            _write(out, buffer, offset)
            offset += len(buffer)
        sock.send(pack({**message, "num_bytes": size}))
        if "values" not in message:
            return


def _next(replies: Iterator[Reply]) -> tuple[dict[str, Any], Sequence[memoryview]]:
    try:
        reply = next(replies)
    except StopIteration:
        return {"end": True}, ()
    except Refusal as refusal:
        return {"error": refusal.error}, ()
    except MemoryError:
        return {"error": {}}, ()
    return {"values": reply.values}, reply.buffers


def _write(out: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(out, data, offset)
        data, offset = data[written:], offset + written


def _silence() -> None:
    """Libraries print what is wrong with a picture, which is the client's affair and not for the logs."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
