"""`python -m services.decoder`: parse, bind, run."""

import asyncio

import structlog
import torch

from services.common.cache import configured_cache
from services.common.checkpoint import Checkpoint
from services.common.collector import spare_what_is_loaded
from services.common.heap import giving_back
from services.common.kernel_caches import keep_few_kernels
from services.common.native import use_kernels
from services.common.process import begin, exit_if_unusable
from services.common.server import install_stop_signals, serve
from services.common.telemetry.process import open_telemetry
from services.common.threads import leave_computing_to_others
from services.decoder.assemble import build_decoder, useful_threads
from services.decoder.service import SERVICE_NAME, register
from services.decoder.settings import DecoderSettings

log = structlog.get_logger()


async def run(settings: DecoderSettings) -> None:
    """Load the model, serve until a stop signal, drain."""
    telemetry = open_telemetry("decoder")
    cache = configured_cache(settings, telemetry.cache, local_bytes=settings.local_cache_bytes)
    checkpoint = Checkpoint.open(settings.model)
    torch.set_num_threads(settings.threads or useful_threads(checkpoint.text))
    # in this thread, so that a stop signal ends it
    engine, service = build_decoder(settings, checkpoint, cache, telemetry)
    spare_what_is_loaded()
    leave_computing_to_others()
    stop = install_stop_signals(asyncio.get_running_loop())
    engine.start()

    try:
        async with telemetry.served(settings.metrics_listen, settings), giving_back():
            await serve(
                settings,
                lambda server: register(service, server),
                [SERVICE_NAME],
                stop=stop,
                guards=[telemetry.interceptor()],
            )
    finally:
        engine.stop()
        await cache.close()


def main() -> None:
    """Serve until stopped. Exits with 2 when the settings or the checkpoint cannot be used."""
    settings = begin("decoder", DecoderSettings, "Generates tokens from prompts and patch embeddings.")
    keep_few_kernels()
    use_kernels(settings.kernels)
    with exit_if_unusable():
        asyncio.run(run(settings))


if __name__ == "__main__":
    main()
