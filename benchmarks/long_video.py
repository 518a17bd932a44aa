"""Memory of an encoder process that a long video goes through, and how soon its first rows leave."""

import asyncio
from pathlib import Path
from time import perf_counter

from diptych.v1 import encoder_service_pb2

from benchmarks.encoder_process import encode_requests, encoder_process, encoder_stub
from benchmarks.figures import PERCENT, Result
from benchmarks.pictures import clip_file
from cli.children import Child

SIDE, SHORT, LONG = 224, 64, 600
MEGABYTES = "MB"


def measure_long_video(checkpoint: Path) -> list[Result]:
    """A minute's frames and ten minutes' (at one a second), rows in the stream; the process keeps none of them."""
    with encoder_process(checkpoint, {"DIPTYCH_CACHE_URL": "memory://", "DIPTYCH_CACHE_MAX_BYTES": "1000000"}) as child:
        return asyncio.run(_measure(child))


async def _measure(child: Child) -> list[Result]:
    short_mb, _ = await _encode(child, SHORT)
    long_mb, first = await _encode(child, LONG)
    peer = f"{SHORT} frames"
    return [
        Result(f"long video: encoder memory, {LONG} frames", long_mb, MEGABYTES, peer, short_mb, short_mb / long_mb),
        Result(f"long video: first rows of {LONG} frames, share of the time", first, PERCENT),
    ]


async def _encode(child: Child, num_frames: int) -> tuple[float, float]:
    """The most memory that the process has held, and when the first rows came, in percent of the whole."""
    requests = encode_requests(clip_file(num_frames, SIDE, num_frames), SIDE, range(num_frames), streamed=True)
    async with encoder_stub(child) as stub:
        began = perf_counter()
        times = [perf_counter() - began async for response in stub.Encode(iter(requests)) if _has_rows(response)]
    return _peak_mb(child.process.pid), 100 * times[0] / times[-1]


def _has_rows(response: encoder_service_pb2.EncodeResponse) -> bool:
    return response.HasField("chunk")


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
