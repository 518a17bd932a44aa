"""A long video goes through in bounded memory. Behind `pytest -m soak`: it takes a minute."""

import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from diptych.v1 import encoder_service_pb2_grpc

from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.common.media.files import encode_video
from tests.encoder.conftest import requests, video_header
from tests.harness import running

SIDE, SHORT, LONG = 224, 64, 600
MORE_BYTES = 64 << 20


def clip(num_frames: int) -> bytes:
    """Frames that all differ, so that every slice is computed."""
    blocks = np.ones((SIDE // 8, SIDE // 8, 1), np.uint8)
    generator = np.random.default_rng(num_frames)
    return encode_video([np.kron(generator.integers(0, 256, (8, 8, 3), np.uint8), blocks) for _ in range(num_frames)])


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


@pytest.mark.soak
async def test_memory_of_a_ten_minute_video(tmp_path: Path) -> None:
    """600 frames take at most 64 MiB more at the encoder than 64 do, and the first rows leave long before the last."""
    model = build_checkpoint(tmp_path / "model", CheckpointSpec())
    with running(model, tmp_path, redis=False, DIPTYCH_CACHE_MAX_BYTES="1000000") as stack:
        child = stack.children["encoder"]
        async with grpc.aio.insecure_channel(str(child.address)) as channel:
            stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
            peaks, firsts = [], []
            for num_frames in (SHORT, LONG):
                data = clip(num_frames)
                header = video_header(
                    [data], SIDE, SIDE, list(range(num_frames)), num_frames // 2, stream=True, inline_embeddings=True
                )
                started = time.monotonic()
                times = [time.monotonic() - started async for _ in stub.Encode(requests(header, data), timeout=300)]
                firsts.append(times[0] / times[-1])
                peaks.append(peak_bytes(child.process.pid))
    print(f"peak {[peak >> 20 for peak in peaks]} MiB, first part after {[round(first, 2) for first in firsts]}")
    assert peaks[1] - peaks[0] < MORE_BYTES
    assert firsts[1] < 0.5
