"""A TCP proxy on one edge between two processes, which can be told to misbehave while it runs."""

import asyncio
import math
import socket
import struct
from dataclasses import dataclass

_PIECE_BYTES = 16 << 10
_RECEIVE_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to bytes on their way. `cut_after_bytes` counts those of one connection, both ways together."""

    delay_s: float = 0.0  # before each piece
    bytes_per_s: float = math.inf
    is_stalled: bool = False
    refuses: bool = False  # new connections
    cut_after_bytes: float = math.inf


HEALTHY = Faults()


class FaultProxy:
    """Listens on a port of its own and passes everything on to `target`, which may change with each restart."""

    def __init__(self, target: str = "") -> None:
        self.target = target
        self._faults = HEALTHY
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None and self._server.is_serving()

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def faults(self) -> Faults:
        """What happens now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        if faults.is_stalled:
            self._flows.clear()
        else:
            self._flows.set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE_BYTES)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def reset(self) -> None:
        """Drop every connection that is open now, with RST."""
        for writer in self._writers:
            _abort(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # an end that is gone is what a proxy passes on: both sides are dropped below
        finally:
            self._connections.discard(task)
            _abort(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._faults.refuses or not self.target:
            return
        await self._flows.wait()
        far_reader, far_writer = await self._open_far_side()
        pair = {writer, far_writer}
        self._writers |= pair
        passed = _Passed()
        pumps = {
            asyncio.create_task(self._pump(reader, far_writer, passed)),
            asyncio.create_task(self._pump(far_reader, writer, passed)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers -= pair
            _abort(far_writer)

    async def _open_far_side(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the target. Its buffer is small, so that whoever writes into a stall notices soon."""
        host, _, port = self.target.rpartition(":")
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        return await asyncio.open_connection(sock=connection, limit=_PIECE_BYTES)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: "_Passed") -> None:
        while data := await reader.read(_PIECE_BYTES):
            faults = self._faults
            if pause_s := faults.delay_s + len(data) / faults.bytes_per_s:
                await asyncio.sleep(pause_s)
            await self._flows.wait()
            passed.num_bytes += len(data)
            if passed.num_bytes > self._faults.cut_after_bytes:
                return
            writer.write(data)
            await writer.drain()


@dataclass(slots=True)
class _Passed:
    num_bytes: int = 0


def _abort(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
