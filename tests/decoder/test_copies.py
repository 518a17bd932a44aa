"""What a decoder keeps of the embeddings that it reads from Redis leaves with a purge."""

from collections.abc import AsyncIterator

import grpc
import pytest
from diptych.v1 import decoder_service_pb2

from cli.local_redis import LocalRedis
from services.common.errors import InvalidRequest, from_rpc_error
from services.common.keys import EPOCH_BYTES
from tests.decoder.harness import Case, Model
from tests.decoder.serving import Service, prompt, put, serving

NEW = b"n" * EPOCH_BYTES
NUM_SLICES = 4


@pytest.fixture
async def service(gqa_model: Model) -> AsyncIterator[Service]:
    """A decoder with a Redis, and memory of its own in front of it."""
    with LocalRedis() as redis:
        async with serving(gqa_model, redis.url, local_cache_bytes=1 << 20) as service:
            yield service


@pytest.fixture
def mixed(gqa_model: Model) -> Case:
    """A prompt with a video and an image."""
    return gqa_model.case(3, ("video", (NUM_SLICES - 1, 3, 4)), 2, ("image", (1, 5, 2)), 9)


async def purged(service: Service, tenant: str = "a") -> decoder_service_pb2.PurgeDecoderResponse:
    """What is removed of a tenant's, whose epoch is NEW from now on."""
    request = decoder_service_pb2.PurgeDecoderRequest(tenant=tenant, epoch=NEW)
    removed: decoder_service_pb2.PurgeDecoderResponse = await service.stub.PurgeDecoder(request)
    return removed


async def test_a_purge_clears_the_decoders_own_memory(service: Service, mixed: Case) -> None:
    """Its copies are counted and gone, those of nobody else; a prompt of before the purge leaves no new ones."""
    references = [await put(service, mixed, index) for index in (0, 1)]
    await service.generate(prompt(mixed), *references)
    assert (await purged(service, "b")).num_values == 0
    removed = await purged(service)
    assert removed.num_values == NUM_SLICES
    assert removed.num_bytes > sum(rows.nbytes for rows in mixed.rows)
    await service.generate(prompt(mixed), *references)
    assert (await purged(service)).num_values == 0
    newer = prompt(mixed)
    newer.prompt.epoch = NEW
    await service.generate(newer, *references)
    assert (await purged(service)).num_values == NUM_SLICES


async def test_an_epoch_has_its_length(service: Service) -> None:
    """Another is refused by the name of its field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.PurgeDecoder(decoder_service_pb2.PurgeDecoderRequest(tenant="a", epoch=NEW[1:]))
    error = from_rpc_error(caught.value, "decoder")
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == ["epoch"]
