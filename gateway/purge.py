"""Removing all that is kept or cached of one tenant, everywhere."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from diptych.v1 import chat_service_pb2, decoder_service_pb2, encoder_service_pb2

from services.common.cache import EmbeddingCache
from services.common.cache.store import Removed
from services.common.errors import DiptychError, ServiceUnavailable
from services.common.keys import EPOCH_BYTES, Owner

from .media_store import MediaStore
from .reach.endpoint import Endpoint, InfoT, StubT
from .reach.kinds import Pools

CALL_TIMEOUT_S = 1.0

AnswerT = TypeVar("AnswerT", encoder_service_pb2.PurgeEncoderResponse, decoder_service_pb2.PurgeDecoderResponse)


class Purge:
    """Sets the tenant's new epoch, from which on nothing old is found, and empties every place of what there is."""

    def __init__(self, cache: EmbeddingCache, store: MediaStore, pools: Pools) -> None:
        self._cache, self._store, self._pools = cache, store, pools

    async def run(self, tenant: str) -> chat_service_pb2.PurgeMediaResponse:
        """What was removed. ServiceUnavailable when the shared cache has not done it all: the rest is done then."""
        owner = Owner(tenant, secrets.token_bytes(EPOCH_BYTES))
        shared, local, encoders, decoders = await asyncio.gather(
            self._cache.of(tenant).purge(owner.epoch),
            self._store.purge_local(owner),
            self._purge_encoders(owner),
            self._purge_decoders(owner),
        )
        if shared is None:
            raise ServiceUnavailable("cache", "the shared cache has not removed everything; ask again")
        answered = [answer for answer in (*encoders, *decoders) if answer is not None]
        removed = sum((Removed(answer.num_values, answer.num_bytes) for answer in answered), shared + local)
        return chat_service_pb2.PurgeMediaResponse(
            num_values=removed.num_values,
            num_bytes=removed.num_bytes,
            num_blocks=sum(answer.num_blocks for answer in decoders if answer is not None),
            num_unreached=sum(answer is None for answer in (*encoders, *decoders)),
        )

    async def _purge_encoders(self, owner: Owner) -> list[encoder_service_pb2.PurgeEncoderResponse | None]:
        request = encoder_service_pb2.PurgeEncoderRequest(tenant=owner.tenant, epoch=owner.epoch)
        return await _ask_all(
            self._pools.encoders.endpoints, lambda stub: stub.PurgeEncoder(request, timeout=CALL_TIMEOUT_S)
        )

    async def _purge_decoders(self, owner: Owner) -> list[decoder_service_pb2.PurgeDecoderResponse | None]:
        request = decoder_service_pb2.PurgeDecoderRequest(tenant=owner.tenant, epoch=owner.epoch)
        return await _ask_all(
            self._pools.decoders.endpoints, lambda stub: stub.PurgeDecoder(request, timeout=CALL_TIMEOUT_S)
        )


async def _ask_all(
    endpoints: Sequence[Endpoint[StubT, InfoT]], ask: Callable[[StubT], Awaitable[AnswerT]]
) -> list[AnswerT | None]:
    async def one(endpoint: Endpoint[StubT, InfoT]) -> AnswerT | None:
        try:
            with endpoint.call() as stub:
                return await ask(stub)
        except DiptychError:
            return None

    return await asyncio.gather(*(one(endpoint) for endpoint in endpoints))
