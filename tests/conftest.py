"""What all tests share."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import TypeVarTuple

import pytest
import torch

from services.common.kernel_caches import keep_few_kernels
from tests.checkpoints import CheckpointSpec, build_checkpoint

keep_few_kernels()  # as the services do: a thousand kept kernels would look like a leak


Ts = TypeVarTuple("Ts")


class ForgivingLoop(asyncio.SelectorEventLoop):
    """Once closed, it drops what it is told.

    grpc.aio has one queue for the events of all loops. What is left of a call of the test before belongs to a loop that
    is closed; the error would keep it from the events behind, which are this test's.
    """

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_closed():
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What pytest-asyncio makes each test's loop with."""
    return {"forgiving": ForgivingLoop}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share the machine with the services that they start."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint whose answers differ with what it sees."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", CheckpointSpec(tied=False))
