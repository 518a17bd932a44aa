"""`python -m gateway`: parse, bind, run."""

import asyncio

import grpc
from diptych.v1 import chat_service_pb2, chat_service_pb2_grpc

from services.common.checkpoint import Checkpoint
from services.common.collector import spare_what_is_loaded
from services.common.heap import giving_back
from services.common.process import begin, exit_if_unusable
from services.common.server import install_stop_signals, serve
from services.common.telemetry.process import open_telemetry

from .caller import guards_of
from .quotas import QuotaInterceptor
from .reach.kinds import open_pools
from .readiness import readiness
from .rooms import Rooms
from .service import ChatService
from .settings import GatewaySettings
from .template import TemplateUnusableError
from .tokenization import TokenizerError

SERVICE_NAME = chat_service_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name


def main() -> None:
    """Read the settings, serve until stopped. Exits with 2 when the settings or the checkpoint cannot be used."""
    settings = begin("gateway", GatewaySettings, "The gateway: chat requests in, text out.")
    with exit_if_unusable(TemplateUnusableError, TokenizerError, ValueError):
        asyncio.run(run(settings))


async def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    telemetry = open_telemetry("gateway")
    identify = [telemetry.interceptor(), *guards_of(settings)]
    checkpoint = Checkpoint.open(settings.model)
    async with telemetry.served(settings.metrics_listen, settings), giving_back(), open_pools(settings) as pools:
        rooms = Rooms(settings, checkpoint, pools, telemetry)
        spare_what_is_loaded()
        stop = install_stop_signals(asyncio.get_running_loop())

        def register(server: grpc.aio.Server) -> None:
            chat_service_pb2_grpc.add_ChatServiceServicer_to_server(ChatService(settings, rooms), server)

        try:
            ready = readiness(pools, rooms.capabilities)
            guards = [*identify, QuotaInterceptor(rooms.quotas)]
            await serve(settings, register, [SERVICE_NAME], stop=stop, guards=guards, readiness=ready)
        finally:
            await rooms.close()


if __name__ == "__main__":
    main()
