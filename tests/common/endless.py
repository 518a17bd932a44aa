"""`python -m tests.common.endless`: a server that a test can stop and continue. It tells its port, then streams."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.common.server import ServerSettings, serve
from tests.common.conftest import SERVICE, Handlers

MESSAGE = bytes(256 << 10)
SLOW_READER_S = 0.5


async def endless(_: bytes, __: Any) -> AsyncIterator[bytes]:
    """Messages for as long as somebody reads."""
    while True:
        yield MESSAGE


async def main() -> None:
    """Serve until the input ends."""
    handlers: Handlers = {"endless": grpc.unary_stream_rpc_method_handler(endless)}

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    settings = ServerSettings(slow_reader_timeout_s=SLOW_READER_S)
    await serve(settings, register, [SERVICE], stop=asyncio.Event(), on_ready=lambda port: print(port, flush=True))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
