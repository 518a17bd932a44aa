"""What the service does not take, and what it says of it."""

import asyncio
from typing import Any

import grpc
import pytest
from diptych.v1 import content_pb2, encoder_service_pb2

from services.encoder.build import Loaded
from tests.encoder.conftest import WAIT_S, Client, Serve, image_header, refused, video_header
from tests.encoder.pictures import PNG, SIDE
from tests.harness import failure

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("header.tenant", {"tenant": ""}),
    ("header.kind", {"kind": content_pb2.MEDIA_KIND_UNSPECIFIED}),
    ("header.media_key", {"media_key": b"short"}),
    ("header.file_sizes", {"file_sizes": []}),
    ("header.file_sizes", {"file_sizes": [0]}),
    ("header.file_sizes", {"file_sizes": [1, len(PNG) - 1]}),
    ("header.file_sizes", {"file_sizes": [len(PNG) + 1]}),
    ("header.file_sizes", {"file_sizes": [len(PNG) - 1]}),
    ("header.file_sizes", {"file_sizes": [1 << 40]}),
    ("header.resized_height", {"resized_height": 100}),
    ("header.resized_height", {"resized_height": 0}),
    ("header.resized_width", {"resized_width": 14}),
    ("header.frame_indices", {"frame_indices": [0, 1]}),
    ("header.frame_indices", {"kind": content_pb2.MEDIA_KIND_VIDEO, "frame_indices": [3, 1]}),
    ("header.frame_indices", {"kind": content_pb2.MEDIA_KIND_VIDEO, "frame_indices": [0, 1, 2]}),
    ("header.grid", {"grid": content_pb2.Grid(t=1, h=8, w=10)}),
    ("header.grid", {"grid": content_pb2.Grid()}),
    ("header.grid", {"resized_height": 28_000, "resized_width": 28_000, "grid": content_pb2.Grid(t=1, h=2000, w=2000)}),
]


@pytest.mark.parametrize(("field", "fields"), WRONG)
async def test_wrong_headers_are_refused_by_field(serve_encoder: Serve, field: str, fields: dict[str, Any]) -> None:
    """INVALID_ARGUMENT with the field's path, and the server goes on."""
    async with serve_encoder() as client:
        failed = await refused(client, image_header(PNG, SIDE, SIDE, **fields), PNG)
        await client.encode(image_header(PNG, 28, 28), PNG)
    assert failed.code == grpc.StatusCode.INVALID_ARGUMENT
    assert field in failed.fields


async def test_the_header_comes_first_and_once(serve_encoder: Serve) -> None:
    """Bytes without a header, and a second header, are refused."""
    header = encoder_service_pb2.EncodeRequest(header=image_header(PNG, SIDE, SIDE))
    async with serve_encoder() as client:
        for messages in ([encoder_service_pb2.EncodeRequest(chunk=b"x")], [header, header], []):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in client.stub.Encode(iter(messages)):
                    pass
            assert "header" in failure(caught.value).fields


@pytest.mark.parametrize(
    ("data", "reason"),
    [(PNG[:5000], "BROKEN_IMAGE"), (b"GIF89a" + bytes(100), "UNSUPPORTED_IMAGE_FORMAT")],
)
async def test_broken_media_are_the_clients_fault(serve_encoder: Serve, data: bytes, reason: str) -> None:
    """A broken file is INVALID_ARGUMENT with its own reason, and no library's words."""
    async with serve_encoder() as client:
        failed = await refused(client, image_header(data, SIDE, SIDE), data)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert failed.fields == {"chunk": reason}


async def test_a_broken_frame_is_named(serve_encoder: Serve) -> None:
    """Of a list of frames, the file at fault is told by its place."""
    files = [PNG, PNG[:5000]]
    async with serve_encoder() as client:
        failed = await refused(client, video_header(files, SIDE, SIDE, [], 1), *files)
    assert failed.fields == {"header.file_sizes[1]": "BROKEN_IMAGE"}


async def test_a_full_queue_says_when_to_come_back(serve_encoder: Serve) -> None:
    """RESOURCE_EXHAUSTED with a delay while another holds the room, and room again once that one has left."""
    header = image_header(PNG, SIDE, SIDE)
    async with serve_encoder(max_item_patches=64, max_queued_patches=64) as client:
        sent = asyncio.Event()
        held = client.stub.Encode(slow(header, sent))
        await asyncio.wait_for(sent.wait(), WAIT_S)
        failed = await until(client, header, grpc.StatusCode.RESOURCE_EXHAUSTED)
        held.cancel()
        assert await until(client, header, None) is None
    assert failed is not None
    assert failed.reason == "OVERLOADED"


async def until(client: Client, header: encoder_service_pb2.EncodeHeader, code: grpc.StatusCode | None) -> Any:
    """Asks again until a call ends so (None: well)."""
    for _ in range(500):
        try:
            await client.encode(header, PNG)
            failed = None
        except grpc.aio.AioRpcError as error:
            failed = failure(error)
        if (failed and failed.code) == code:
            return failed
    raise AssertionError(f"never {code}")


async def slow(header: encoder_service_pb2.EncodeHeader, sent: asyncio.Event) -> Any:
    """A header whose file never comes; `sent` tells when the header is on its way."""
    yield encoder_service_pb2.EncodeRequest(header=header)
    sent.set()
    await asyncio.Event().wait()


async def test_keys_of_other_weights_are_refused(serve_encoder: Serve, loaded: Loaded) -> None:
    """An encoder does not work for a gateway that takes it for another version of itself."""
    async with serve_encoder() as client:
        await client.encode(image_header(PNG, SIDE, SIDE, vision_digest=loaded.vision.digest), PNG)
        error = await refused(client, image_header(PNG, SIDE, SIDE, vision_digest="another"), PNG)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")
