"""An encoder of its own with a Redis, and calls to it as a gateway makes them."""

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic, perf_counter, sleep

import grpc
from diptych.v1 import content_pb2, encoder_service_pb2
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from cli.children import Child
from cli.local_redis import LocalRedis

CHUNK_BYTES = 1 << 20
PATCH = 14
START_TIMEOUT_S = 120.0


@contextmanager
def encoder_process(checkpoint: Path, settings: Mapping[str, str] | None = None) -> Iterator[Child]:
    """An encoder that listens; stopped with its Redis at the end."""
    with LocalRedis() as redis, tempfile.TemporaryDirectory(prefix="diptych-") as folder:
        environment = {"DIPTYCH_MODEL": str(checkpoint), "DIPTYCH_CACHE_URL": redis.url, **(settings or {})}
        child = Child("encoder", "services.encoder", environment, Path(folder))
        try:
            deadline = monotonic() + START_TIMEOUT_S
            while child.address is None:
                if child.exit_code is not None or monotonic() > deadline:
                    raise RuntimeError(child.log_tail())
                sleep(0.05)
            yield child
        finally:
            child.stop(START_TIMEOUT_S)


@asynccontextmanager
async def encoder_stub(child: Child) -> AsyncIterator[EncoderServiceStub]:
    """A connection to it."""
    async with grpc.aio.insecure_channel(str(child.address)) as channel:
        yield EncoderServiceStub(channel)


async def encode_ms(stub: EncoderServiceStub, data: bytes, side: int, frame_indices: Sequence[int] = ()) -> float:
    """How long one square picture, or frames of a clip, take from the first byte sent to the last answer."""
    requests = encode_requests(data, side, frame_indices)
    began = perf_counter()
    async for _ in stub.Encode(iter(requests)):
        pass
    return (perf_counter() - began) * 1000


def encode_requests(
    data: bytes, side: int, frame_indices: Sequence[int] = (), *, streamed: bool = False
) -> list[encoder_service_pb2.EncodeRequest]:
    """One square picture, or frames of a clip; with `streamed` its rows are to come as they are made."""
    kind = content_pb2.MEDIA_KIND_VIDEO if frame_indices else content_pb2.MEDIA_KIND_IMAGE
    name = f"{side} {list(frame_indices)} {hashlib.sha256(data).hexdigest()}"
    header = encoder_service_pb2.EncodeHeader(
        request_id="benchmark",
        tenant="benchmark",
        kind=kind,
        file_sizes=[len(data)],
        resized_height=side,
        resized_width=side,
        frame_indices=frame_indices,
        grid=content_pb2.Grid(t=max(1, len(frame_indices) // 2), h=side // PATCH, w=side // PATCH),
        media_key=hashlib.sha256(name.encode()).digest(),
        inline_embeddings=streamed,
        stream=streamed,
    )
    chunks = (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
    return [
        encoder_service_pb2.EncodeRequest(header=header),
        *(encoder_service_pb2.EncodeRequest(chunk=chunk) for chunk in chunks),
    ]
