"""`python -m services.encoder`: parse, bind, run."""

import asyncio
import sys

from services.common.allocator import keep_freed_memory
from services.common.checkpoint import CheckpointError
from services.common.collector import spare_what_is_loaded
from services.common.grpc_batches import free_every_batch
from services.common.kernel_caches import keep_few_kernels
from services.common.logs import configure_logging
from services.common.native import use_kernels
from services.common.server import exit_on_stop_signals, install_stop_signals, serve
from services.common.settings import parse_command_line
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
    """Exit code 2 when the settings, the checkpoint or the address cannot be used."""
    exit_on_stop_signals()
    settings = parse_command_line(EncoderSettings, "Turns images and videos into embeddings for the decoder.")
    configure_logging("encoder")
    keep_freed_memory()
    free_every_batch()
    keep_few_kernels()
    use_kernels(settings.kernels)
    try:
        loaded = load_model(settings)
    except CheckpointError as error:
        print(f"DIPTYCH_MODEL: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    spare_what_is_loaded()
    leave_computing_to_others()  # the model has a thread of its own from here on
    try:
        asyncio.run(run(settings, loaded))
    except OSError as error:
        print(f"DIPTYCH_ENCODER_LISTEN: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
