"""`python -m services.encoder`: parse, bind, run."""

import asyncio

from services.common.collector import spare_what_is_loaded
from services.common.kernel_caches import keep_few_kernels
from services.common.native import use_kernels
from services.common.process import begin, exit_if_unusable
from services.common.server import install_stop_signals, serve
from services.common.telemetry.process import open_telemetry
from services.common.threads import leave_computing_to_others
from services.encoder.build import Loaded, encoder_service, load_model
from services.encoder.service import SERVICE_NAME, register
from services.encoder.settings import EncoderSettings


async def run(settings: EncoderSettings, loaded: Loaded) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop, telemetry = install_stop_signals(asyncio.get_running_loop()), open_telemetry("encoder")
    async with (
        telemetry.served(settings.metrics_listen, settings),
        encoder_service(settings, loaded, telemetry) as service,
    ):
        await serve(
            settings,
            lambda server: register(service, server),
            [SERVICE_NAME],
            stop=stop,
            guards=[telemetry.interceptor()],
        )


def main() -> None:
    """Serve until stopped. Exits with 2 when the settings or the checkpoint cannot be used."""
    settings = begin("encoder", EncoderSettings, "Turns images and videos into embeddings for the decoder.")
    keep_few_kernels()
    use_kernels(settings.kernels)
    with exit_if_unusable():
        loaded = load_model(settings)
        spare_what_is_loaded()
        leave_computing_to_others()  # the model has a thread of its own from here on
        asyncio.run(run(settings, loaded))


if __name__ == "__main__":
    main()
