"""Videos over a real socket: slices that clips share, windows, and lists of frames."""

from typing import Any

import numpy as np
import pytest
from diptych.v1 import encoder_service_pb2

from services.common.cache import open_cache
from tests.common.media.files import encode_image
from tests.encoder.conftest import WAIT_S, Client, Serve, image_header, requests, video_header
from tests.encoder.pictures import PHOTO, ROW_BYTES, noise_video


async def test_overlapping_clips_share_slices(serve_encoder: Serve) -> None:
    """Of a clip that overlaps an earlier one only the new slices are computed."""
    data = noise_video(12)
    async with serve_encoder() as client:
        first = await client.encode(video_header([data], 56, 84, list(range(8)), 4), data)
        second = await client.encode(video_header([data], 56, 84, list(range(4, 12)), 4), data)
    assert first.manifest.slice_keys[2:] == second.manifest.slice_keys[:2]
    assert (first.manifest.num_cached_slices, second.manifest.num_cached_slices) == (0, 2)
    half = len(first.data) // 2
    assert first.data[half:] == second.data[:half]
    assert len(first.data) == 4 * 6 * ROW_BYTES


async def test_a_long_video_goes_through_in_windows(serve_encoder: Serve) -> None:
    """More slices than fit a batch come out complete and in order."""
    data = noise_video(30)
    header = video_header([data], 56, 84, list(range(30)), 15)
    async with serve_encoder() as client:
        whole = await client.encode(header, data)
    async with serve_encoder(batch_patches=48) as client:
        windows = await client.encode(header, data)
    assert len(set(whole.manifest.slice_keys)) == 15
    assert windows.manifest.slice_keys == whole.manifest.slice_keys
    assert windows.manifest.num_cached_slices == 0
    np.testing.assert_allclose(np.frombuffer(windows.data, "f4"), np.frombuffer(whole.data, "f4"), atol=1e-5)


async def parts_of(client: Client, header: encoder_service_pb2.EncodeHeader, data: bytes) -> list[Any]:
    """Everything that a streaming encode says, in order."""
    header.stream = True
    return [response async for response in client.stub.Encode(requests(header, data), timeout=WAIT_S)]


async def test_rows_of_a_long_video_leave_before_it_is_encoded(serve_encoder: Serve) -> None:
    """With `stream`, windows come before the manifest and the last one behind it; together they are the whole."""
    data = noise_video(30)
    header = video_header([data], 56, 84, list(range(30)), 15)
    async with serve_encoder(batch_patches=48) as client:
        whole = await client.encode(header, data)
        responses = await parts_of(client, header, data)
    kinds = [response.WhichOneof("message") for response in responses]
    assert kinds == ["chunk"] * 14 + ["manifest"] + ["chunk"]
    assert b"".join(response.chunk.data for response in responses) == whole.data
    assert responses[14].manifest.slice_keys == whole.manifest.slice_keys


async def test_slices_of_a_long_video_are_named_as_they_are_stored(serve_encoder: Serve, redis_url: str) -> None:
    """With `stream` and a shared cache, keys come before the manifest, and each is in the cache by then."""
    data = noise_video(12)
    header = video_header([data], 56, 84, list(range(12)), 6, tenant="streamed")
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1)
    async with serve_encoder(batch_patches=48, cache_url=redis_url, cache_timeout_s=2) as client:
        responses = await parts_of(client, header, data)
    stored = [response.stored for response in responses if response.WhichOneof("message") == "stored"]
    assert [(part.first_slice, len(part.slice_keys)) for part in stored] == [(0, 2), (2, 2)]
    assert all(await cache.of("streamed").has_slices([key for part in stored for key in part.slice_keys]))
    assert [key for part in stored for key in part.slice_keys] == list(responses[-1].manifest.slice_keys[:4])
    await cache.close()


@pytest.mark.parametrize("indices", [[], [0, 1, 2, 2]])
async def test_a_list_of_frames(serve_encoder: Serve, indices: list[int]) -> None:
    """Pictures make a video, with or without their indices named; a repeated picture is the picture alone."""
    files = [encode_image(PHOTO.rotate(angle), "PNG") for angle in (0, 10, 20)]
    async with serve_encoder() as client:
        reply = await client.encode(video_header(files, 56, 56, indices, 2), *files)
        alone = await client.encode(image_header(files[2], 56, 56), files[2])
    assert len(reply.data) == 2 * 4 * ROW_BYTES
    assert alone.manifest.slice_keys[0] == reply.manifest.slice_keys[1]
    assert alone.manifest.num_cached_slices == 1
