"""Fake decoders behind one name, each at an address of its own."""

import asyncio
from functools import partial

from diptych.v1 import decoder_service_pb2_grpc

from services.common.checkpoint import Checkpoint
from services.common.server import ServerSettings, serve
from tests.gateway.fakes import FakeDecoder


class Decoders:
    """Fake decoders on 127.0.0.1, 127.0.0.2 and so on, all on one port, and the name that stands for them."""

    def __init__(self, model: Checkpoint) -> None:
        self.hosts: list[str] = []
        self.fakes: dict[str, FakeDecoder] = {}
        self.port = 0
        self._model = model
        self._stops: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def resolve(self, _host: str, _port: int) -> list[str]:
        return self.hosts

    async def start(self, host: str, digest: str = "", **settings: object) -> None:
        """Serve at `host`; the name does not stand for it yet."""
        fake = self.fakes[host] = FakeDecoder(self._model, digest=digest)
        register = partial(decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server, fake)
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        listen = ServerSettings(listen=f"{host}:{self.port}", drain_notice_s=0.2, **settings)  # type: ignore[arg-type]
        task = asyncio.create_task(serve(listen, register, [], stop=stop, on_ready=ready.set_result))
        self._stops[host] = stop, task
        self.port = await ready

    async def stop(self, host: str) -> None:
        """Drain the server at `host`."""
        stop, task = self._stops.pop(host)
        stop.set()
        await task

    async def stop_all(self) -> None:
        await asyncio.gather(*(self.stop(host) for host in list(self._stops)))
