"""What the gateway's tests share."""

import io
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from gateway.prompt import PromptBuilder
from gateway.rooms import open_prompts
from services.common.checkpoint import Checkpoint
from tests.gateway.fakes import Stage, staged

settings.register_profile("gateway", deadline=None)  # the machine may be busy
settings.load_profile("gateway")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Checkpoint:
    """The small checkpoint, opened."""
    return Checkpoint.open(str(checkpoint))


@pytest.fixture(scope="session")
def prompts(model: Checkpoint) -> PromptBuilder:
    """Its template and tokenizer."""
    return open_prompts(model)


@pytest.fixture
async def stage(model: Checkpoint) -> AsyncIterator[Stage]:
    """A gateway with default settings between fakes."""
    async with staged(model) as stage:
        yield stage


@pytest.fixture(scope="session")
def png() -> bytes:
    """A picture of 56 x 84 pixels (height x width)."""
    return picture(56, 84)


@pytest.fixture(scope="session")
def mp4() -> bytes:
    """A video of 12 frames of 56 x 56 pixels, 6 frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(6))
        stream.height, stream.width, stream.pix_fmt = 56, 56, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((56, 56, 3), number * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def picture(height: int, width: int, file_format: str = "PNG", shade: int = 90) -> bytes:
    """A plain picture as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 120, 30)).save(buffer, file_format)
    return buffer.getvalue()
