"""What the encoder and the decoder run, asked for when first needed and again every few seconds."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

import grpc
from diptych.v1 import decoder_service_pb2, encoder_service_pb2

from services.common.checkpoint import Checkpoint
from services.common.errors import DeadlineExceeded, ServiceUnavailable, VersionMismatch
from services.common.keys import CacheProfile

from .remote import known_error

Encoder = encoder_service_pb2.GetEncoderCapabilitiesResponse
Decoder = decoder_service_pb2.GetDecoderCapabilitiesResponse
ValueT = TypeVar("ValueT", Encoder, Decoder)

REFRESH_S = 5.0
CALL_TIMEOUT_S = 2.0


class Remembered(Generic[ValueT]):
    """One service's capabilities. While it cannot be reached, what it said last holds."""

    def __init__(self, service: str, ask: Callable[[], Awaitable[ValueT]]) -> None:
        self.last: ValueT | None = None
        self._service = service
        self._ask: Callable[[], Awaitable[ValueT]] = ask
        self._asked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def get(self, *, fresh: bool = False) -> ValueT:
        """Raises ServiceUnavailable, or what the service answers, when nothing is known of it yet."""
        entered_at = monotonic()
        async with self._lock:
            is_due = self._asked_at + (0 if fresh else REFRESH_S) <= entered_at
            if self.last is None or is_due:
                self.last = await self._refreshed()
                self._asked_at = monotonic()
            return self.last

    async def _refreshed(self) -> ValueT:
        try:
            return await self._ask()
        except grpc.aio.AioRpcError as error:
            known = known_error(error, self._service)
            if not isinstance(known, ServiceUnavailable | DeadlineExceeded):
                raise known from error
            if self.last is None:
                raise ServiceUnavailable(self._service) from error
            return self.last


class Capabilities:
    """The two services as this gateway sees them, checked against its own checkpoint."""

    def __init__(self, checkpoint: Checkpoint, encoder: Remembered[Encoder], decoder: Remembered[Decoder]) -> None:
        self.checkpoint_digest = own_digest(checkpoint)
        self._checkpoint = checkpoint
        self._encoder = encoder
        self._decoder = decoder

    @property
    def last_encoder(self) -> Encoder | None:
        """What the encoder said last, without asking."""
        return self._encoder.last

    @property
    def last_decoder(self) -> Decoder | None:
        """What the decoder said last, without asking."""
        return self._decoder.last

    async def decoder(self) -> Decoder:
        """The decoder's. Raises VersionMismatch when it runs another checkpoint than this gateway's."""
        found = await self._decoder.get()
        if self.checkpoint_digest not in ("", found.checkpoint_digest):
            found = await self._decoder.get(fresh=True)
            _require_equal("checkpoint of gateway and decoder", self.checkpoint_digest, found.checkpoint_digest)
        _require_equal("vocabulary of gateway and decoder", self._checkpoint.text.vocab_size, found.vocab_size)
        _require_equal("merge size of gateway and decoder", self._checkpoint.preprocessor.merge_size, found.merge_size)
        return found

    async def encoder(self, decoder: Decoder) -> Encoder:
        """The encoder's. Raises VersionMismatch when it does not fit `decoder` or this gateway's media rules."""
        found = await self._encoder.get()
        if found.checkpoint_digest != decoder.checkpoint_digest:
            found, decoder = await self._encoder.get(fresh=True), await self._decoder.get(fresh=True)
        _require_equal("checkpoint of encoder and decoder", decoder.checkpoint_digest, found.checkpoint_digest)
        _require_equal("preprocessing", self._checkpoint.preprocessor.version, found.preprocessing)
        return found


def profile_of(encoder: Encoder) -> CacheProfile:
    """What an encoder's embeddings depend on besides the pixels."""
    return CacheProfile(encoder.vision_digest, encoder.dtype, encoder.preprocessing)


def own_digest(checkpoint: Checkpoint) -> str:
    """The digest of the gateway's own copy; "" where it has the configs only, and no weights to compare."""
    has_weights = any(checkpoint.path.glob("*.safetensors"))
    return checkpoint.digest() if has_weights else ""


def _require_equal(subject: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise VersionMismatch(subject, str(expected), str(actual))
