"""An encoder on a free port, and calls to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from diptych.v1 import content_pb2, encoder_service_pb2, encoder_service_pb2_grpc

from cli.local_redis import LocalRedis
from services.common.server import serve
from services.common.settings import load
from services.common.telemetry.process import Telemetry
from services.encoder.build import Loaded, encoder_service, load_model
from services.encoder.service import SERVICE_NAME, register
from services.encoder.settings import EncoderSettings
from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.harness import failure

WAIT_S = 20.0


def settings_for(model: Path, **overrides: Any) -> EncoderSettings:
    """Settings for tests: one thread, no time lost when a server stops, and patience with Redis on a busy machine."""
    chosen = {"threads": 1, "drain_grace_s": 1, "drain_notice_s": 0, "cache_timeout_s": 5, **overrides}
    return load(EncoderSettings, model=str(model), **chosen)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with an odd number of vision layers."""
    return build_checkpoint(tmp_path_factory.mktemp("encoder") / "model", CheckpointSpec(vision_depth=3))


@pytest.fixture(scope="session")
def loaded(model: Path) -> Loaded:
    """That checkpoint in memory, shared by all servers of these tests."""
    return load_model(settings_for(model))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis or Valkey server."""
    with LocalRedis() as server:
        yield server.url


@dataclass(frozen=True)
class Reply:
    """One answer: its manifest, and the bytes of all chunks."""

    manifest: encoder_service_pb2.Manifest
    data: bytes


@dataclass(frozen=True)
class Client:
    """Calls an encoder over a socket."""

    stub: Any

    async def encode(self, header: encoder_service_pb2.EncodeHeader, *files: bytes) -> Reply:
        """One call, with the files in chunks of 100,000 bytes."""
        manifest, data = None, bytearray()
        async for response in self.stub.Encode(requests(header, *files), timeout=WAIT_S):
            if response.WhichOneof("message") == "manifest":
                assert manifest is None
                manifest = response.manifest
            else:
                assert manifest is not None
                assert response.chunk.byte_offset == len(data)
                assert len(response.chunk.data) <= 1 << 20
                data += response.chunk.data
        assert manifest is not None
        return Reply(manifest, bytes(data))


async def requests(
    header: encoder_service_pb2.EncodeHeader, *files: bytes
) -> AsyncIterator[encoder_service_pb2.EncodeRequest]:
    """The messages of one call."""
    yield encoder_service_pb2.EncodeRequest(header=header)
    data = b"".join(files)
    for start in range(0, len(data), 100_000):
        yield encoder_service_pb2.EncodeRequest(chunk=data[start : start + 100_000])


def image_header(data: bytes, height: int, width: int, **fields: Any) -> encoder_service_pb2.EncodeHeader:
    """A correct header for one picture at patch size 14."""
    known: dict[str, Any] = {
        "request_id": "r",
        "tenant": "t",
        "kind": content_pb2.MEDIA_KIND_IMAGE,
        "file_sizes": [len(data)],
        "resized_height": height,
        "resized_width": width,
        "grid": content_pb2.Grid(t=1, h=height // 14, w=width // 14),
        "media_key": bytes(32),
    }
    return encoder_service_pb2.EncodeHeader(**{**known, **fields})


def video_header(
    files: list[bytes], height: int, width: int, indices: list[int], slices: int, **fields: Any
) -> encoder_service_pb2.EncodeHeader:
    """A correct header for a video."""
    return image_header(
        b"",
        height,
        width,
        kind=content_pb2.MEDIA_KIND_VIDEO,
        file_sizes=[len(file) for file in files],
        frame_indices=indices,
        grid=content_pb2.Grid(t=slices, h=height // 14, w=width // 14),
        **fields,
    )


Serve = Callable[..., AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def serving(settings: EncoderSettings, loaded: Loaded) -> AsyncIterator[Client]:
    """A server on a free port, and a client of it."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with encoder_service(settings, loaded, Telemetry("encoder")) as service:
        server = asyncio.create_task(
            serve(
                settings,
                lambda server: register(service, server),
                [SERVICE_NAME],
                stop=stop,
                on_ready=port.set_result,
            )
        )
        try:
            address = f"127.0.0.1:{await asyncio.wait_for(port, WAIT_S)}"
            async with grpc.aio.insecure_channel(address) as channel:
                yield Client(encoder_service_pb2_grpc.EncoderServiceStub(channel))
        finally:
            stop.set()
            await asyncio.wait_for(server, WAIT_S)


@pytest.fixture
def serve_encoder(model: Path, loaded: Loaded) -> Serve:
    """Starts an encoder with given settings."""

    def start(**overrides: Any) -> AbstractAsyncContextManager[Client]:
        return serving(settings_for(model, **overrides), loaded)

    return start


async def refused(client: Client, header: encoder_service_pb2.EncodeHeader, *files: bytes) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.encode(header, *files)
    return failure(caught.value)
