"""The service over a real socket, with a real model behind it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from diptych.v1 import encoder_service_pb2
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.encoder.build import Loaded
from tests.common.media.files import encode_image
from tests.encoder.conftest import Serve, image_header, refused, serving, settings_for
from tests.encoder.pictures import PHOTO, PNG, ROW_BYTES, SIDE


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
