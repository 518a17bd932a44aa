"""What all tests share."""

from pathlib import Path

import pytest
import torch

from services.common.kernel_caches import keep_few_kernels
from tests.checkpoints import CheckpointSpec, build_checkpoint

keep_few_kernels()  # as the services do: a thousand kept kernels would look like a leak


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share the machine with the services that they start."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint whose answers differ with what it sees."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", CheckpointSpec(tied=False))
