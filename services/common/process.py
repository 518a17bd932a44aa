"""What the process of each service does before anything else, and how it ends when it cannot serve."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from services.common.allocator import keep_freed_memory
from services.common.checkpoint import CheckpointError
from services.common.grpc_batches import free_every_batch
from services.common.logs import configure_logging
from services.common.server import ServerSettings, exit_on_stop_signals
from services.common.settings import parse_command_line

SettingsT = TypeVar("SettingsT", bound=ServerSettings)


def begin(service: str, settings_type: type[SettingsT], description: str) -> SettingsT:
    """The settings, from environment and command line; stop signals, logs and memory are as in every service.

    To be called before threads are started. Exits with 2 when a setting is wrong.
    """
    exit_on_stop_signals()
    settings = parse_command_line(settings_type, description)
    configure_logging(service)
    keep_freed_memory()
    free_every_batch()
    return settings


@contextmanager
def exit_if_unusable(*others: type[Exception]) -> Iterator[None]:
    """Exit with 2 and one line when the checkpoint, an address, a file, or what `others` tell of cannot be used."""
    unusable: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except CheckpointError as error:
        _exit(f"DIPTYCH_MODEL: {error}", error)
    except unusable as error:
        _exit(str(error), error)


def _exit(text: str, error: Exception) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(2) from error
