import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diptych.v1 import content_pb2, encoder_service_pb2
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.common.cache import open_cache
from services.encoder.build import Loaded
from tests.common.media.files import encode_image, encode_video, photo
from tests.encoder.conftest import WAIT_S, Client, Serve, image_header, requests, serving, settings_for, video_header
from tests.harness import failure

PHOTO = photo()
PNG = encode_image(PHOTO, "PNG")
SIDE = 112
ROW_BYTES = 64 * 4


def noise_video(num_frames: int) -> bytes:
    generator = np.random.default_rng(0)
    blocks = np.ones((8, 8, 1), np.uint8)
    return encode_video([np.kron(generator.integers(0, 256, (6, 8, 3), np.uint8), blocks) for _ in range(num_frames)])


async def refused(client: Client, header: encoder_service_pb2.EncodeHeader, *files: bytes) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.encode(header, *files)
    return failure(caught.value)


async def test_embeddings_equal_transformers(serve_encoder: Serve, model: Path) -> None:
    """From a file's bytes to rows over the wire: within 1e-4 of the reference's processor and tower."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(model)
    inputs = processor(images=[PHOTO], return_tensors="pt", size={"shortest_edge": 3136, "longest_edge": 100_000})
    visual = Qwen2VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32).model.visual
    with torch.inference_mode():
        expected = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output.numpy()
    _, h, w = inputs["image_grid_thw"][0].tolist()
    async with serve_encoder() as client:
        reply = await client.encode(image_header(PNG, h * 14, w * 14), PNG)
    rows = np.frombuffer(reply.data, np.float32).reshape(expected.shape)
    assert (reply.manifest.width, reply.manifest.dtype, reply.manifest.stored) == (64, "float32", False)
    np.testing.assert_allclose(rows, expected, atol=1e-4, rtol=0)


async def test_a_cached_embedding_is_bit_identical(serve_encoder: Serve) -> None:
    """Without Redis the encoder's own tier answers the second time, with the very same bytes."""
    header = image_header(PNG, SIDE, SIDE)
    async with serve_encoder() as client:
        first, second = await client.encode(header, PNG), await client.encode(header, PNG)
    assert (first.manifest.num_cached_slices, second.manifest.num_cached_slices) == (0, 1)
    assert first.data == second.data
    assert len(first.data) == 16 * ROW_BYTES


async def test_equal_pixels_share_a_slice_whatever_the_file(serve_encoder: Serve) -> None:
    """The same picture as PNG and as lossless WebP is one slice, and of another tenant another."""
    webp = encode_image(PHOTO, "WEBP", lossless=True)
    async with serve_encoder() as client:
        first = await client.encode(image_header(PNG, SIDE, SIDE), PNG)
        same = await client.encode(image_header(webp, SIDE, SIDE), webp)
        other = await client.encode(image_header(PNG, SIDE, SIDE, tenant="u"), PNG)
    assert same.manifest.slice_keys == first.manifest.slice_keys
    assert same.manifest.num_cached_slices == 1
    assert other.manifest.slice_keys != first.manifest.slice_keys
    assert other.manifest.num_cached_slices == 0


async def test_a_shared_cache_holds_the_slices_and_the_manifest(serve_encoder: Serve, redis_url: str) -> None:
    """Acknowledged by Redis, nothing is sent inline unless asked for, and others find every slice."""
    header = image_header(PNG, SIDE, SIDE, media_key=b"a" * 32, tenant="shared")
    async with serve_encoder(cache_url=redis_url) as client:
        stored = await client.encode(header, PNG)
        header.inline_embeddings = True
        inline = await client.encode(header, PNG)
    assert (stored.manifest.stored, stored.data) == (True, b"")
    assert inline.manifest.stored
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1).of("shared")
    manifest = await cache.get_manifest(b"a" * 32)
    assert manifest is not None
    assert (manifest.grid, manifest.slice_keys) == ((1, 8, 8), tuple(stored.manifest.slice_keys))
    (rows,) = await cache.get_slices(manifest.slice_keys)
    assert rows is not None
    assert bytes(rows.data) == inline.data
    await cache.close()


async def test_a_secret_seals_what_is_shared(serve_encoder: Serve, redis_url: str) -> None:
    """With a secret Redis holds nothing that can be read, and only the tenant's own cache opens it."""
    header = image_header(PNG, SIDE, SIDE, media_key=b"s" * 32, tenant="sealed")
    header.inline_embeddings = True
    async with serve_encoder(cache_url=redis_url, cache_secret="hidden") as client:  # noqa: S106 -- a test's
        first, second = await client.encode(header, PNG), await client.encode(header, PNG)
    assert (first.manifest.stored, second.manifest.num_cached_slices) == (True, 1)
    keys = first.manifest.slice_keys
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1, secrets=[b"hidden"])
    assert await cache.of("sealed").get_manifest(b"s" * 32) is not None
    (stored,) = await cache._store.get([cache.of("sealed")._name("slice", keys[0])])
    assert stored is not None
    assert first.data[:32] not in stored
    (rows,) = await cache.of("sealed").get_slices(keys)
    assert rows is not None
    assert bytes(rows.data) == first.data
    assert await cache.of("other").get_slices(keys) == [None]
    await cache.close()


async def test_a_second_encoder_finds_what_the_first_has_stored(serve_encoder: Serve, redis_url: str) -> None:
    """A slice is computed once for all encoders."""
    header = image_header(PNG, SIDE, SIDE, tenant="two encoders")
    async with serve_encoder(cache_url=redis_url) as first, serve_encoder(cache_url=redis_url) as second:
        assert (await first.encode(header, PNG)).manifest.num_cached_slices == 0
        assert (await second.encode(header, PNG)).manifest.num_cached_slices == 1


@pytest.mark.parametrize("cache_url", ["redis", "memory"])
async def test_no_store_reads_and_never_writes(serve_encoder: Serve, redis_url: str, cache_url: str) -> None:
    """Such an item finds what others have stored; its own rows are in no cache, nor is its manifest."""
    url = redis_url if cache_url == "redis" else "memory://"
    fields = {"tenant": f"passing {cache_url}", "inline_embeddings": True}
    kept = image_header(PNG, SIDE, SIDE, media_key=b"k" * 32, **fields)
    passing = image_header(PNG, SIDE, SIDE, media_key=b"p" * 32, no_store=True, **fields)
    cache = open_cache(url, ttl_s=60, max_bytes=1)
    async with serve_encoder(cache_url=url) as client:
        replies = [await client.encode(header, PNG) for header in (passing, passing, kept, passing)]
    assert [reply.manifest.num_cached_slices for reply in replies] == [0, 0, 0, 1]
    assert not any(reply.manifest.stored for reply in (*replies[:2], replies[3]))
    assert len({reply.data for reply in replies}) == 1
    assert await cache.of(kept.tenant).get_manifest(b"p" * 32) is None
    await cache.close()


async def test_no_store_and_its_opposite_at_once(serve_encoder: Serve, redis_url: str) -> None:
    """Of callers with the same picture each gets what it asked for, whoever came first."""
    async with serve_encoder(cache_url=redis_url) as client:
        for kept_at in (0, 1, 2):
            headers = [
                image_header(
                    PNG, SIDE, SIDE, tenant=f"at once {kept_at}", inline_embeddings=True, no_store=index != kept_at
                )
                for index in range(3)
            ]
            replies = await asyncio.gather(*(client.encode(header, PNG) for header in headers))
            assert [reply.manifest.stored for reply in replies] == [index == kept_at for index in range(3)]
            assert len({reply.data for reply in replies}) == 1


async def test_redis_down_means_inline(serve_encoder: Serve) -> None:
    """With a Redis that is not there, the rows travel in the stream and nothing claims to be stored."""
    async with serve_encoder(cache_url="redis://127.0.0.1:1/0") as client:
        reply = await client.encode(image_header(PNG, SIDE, SIDE), PNG)
        again = await client.encode(image_header(PNG, SIDE, SIDE), PNG)
    assert not reply.manifest.stored
    assert len(reply.data) == 16 * ROW_BYTES
    assert (again.manifest.num_cached_slices, again.data) == (1, reply.data)


async def test_what_redis_has_lost_is_given_back(serve_encoder: Serve, redis_url: str) -> None:
    """After a flush, the encoder's own tier restores the shared cache before it says `stored`."""
    cache = open_cache(redis_url, ttl_s=60, max_bytes=1).of("flushed")
    header = image_header(PNG, SIDE, SIDE, tenant="flushed")
    async with serve_encoder(cache_url=redis_url) as client:
        keys = (await client.encode(header, PNG)).manifest.slice_keys
        await cache._store.delete([cache._name("slice", key) for key in keys])  # no flush in its API
        assert await cache.has_slices(keys) == [False]
        reply = await client.encode(header, PNG)
    assert (reply.manifest.stored, reply.manifest.num_cached_slices) == (True, 1)
    assert await cache.has_slices(keys) == [True]
    await cache.close()


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


async def test_the_same_picture_asked_for_by_many_is_encoded_once(loaded: Loaded, model: Path) -> None:
    """100 requests at once, one pass through the model."""
    batches: list[int] = []

    class Counting:
        def embed(self, slices: Any) -> Any:
            batches.append(len(slices))
            return loaded.embedder.embed(slices)

    settings = settings_for(model)
    async with serving(settings, replace(loaded, embedder=Counting())) as client:  # type: ignore[arg-type]
        replies = await asyncio.gather(*(client.encode(image_header(PNG, SIDE, SIDE), PNG) for _ in range(100)))
    assert batches == [1]
    assert len({reply.data for reply in replies}) == 1


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


async def test_rows_that_are_not_finite_fail_and_are_not_cached(loaded: Loaded, model: Path) -> None:
    """INTERNAL for that item alone, and the next request computes anew."""
    weight = loaded.vision.model.get_parameter("merger.ln_q.weight")
    settings = settings_for(model)
    async with serving(settings, loaded) as client:
        kept = weight[0].item()
        with torch.inference_mode():
            weight[0] = float("nan")
        failed = await refused(client, image_header(PNG, SIDE, SIDE), PNG)
        with torch.inference_mode():
            weight[0] = kept
        reply = await client.encode(image_header(PNG, SIDE, SIDE), PNG)
    assert failed.code == grpc.StatusCode.INTERNAL
    assert reply.manifest.num_cached_slices == 0


async def test_capabilities(serve_encoder: Serve, loaded: Loaded, redis_url: str) -> None:
    """What the gateway needs for keys and checks."""
    async with serve_encoder(cache_url=redis_url) as client:
        reply = await client.stub.GetEncoderCapabilities(encoder_service_pb2.GetEncoderCapabilitiesRequest())
    assert reply.vision_digest == loaded.vision.digest
    assert reply.checkpoint_digest == loaded.checkpoint.digest()
    assert reply.preprocessing == loaded.checkpoint.preprocessor.version
    assert (reply.width, reply.dtype, reply.patch_size, reply.merge_size, reply.temporal_patch_size) == (
        64,
        "float32",
        14,
        2,
        2,
    )
    assert reply.cache == "redis"


async def test_keys_of_other_weights_are_refused(serve_encoder: Serve, loaded: Loaded) -> None:
    """An encoder does not work for a gateway that takes it for another version of itself."""
    async with serve_encoder() as client:
        await client.encode(image_header(PNG, SIDE, SIDE, vision_digest=loaded.vision.digest), PNG)
        error = await refused(client, image_header(PNG, SIDE, SIDE, vision_digest="another"), PNG)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")
