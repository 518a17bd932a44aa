"""What encoders and decoders run, and which of them fit this gateway and each other."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from services.common.checkpoint import Checkpoint
from services.common.errors import ServiceUnavailable, VersionMismatch
from services.common.keys import CacheProfile

from .reach.choice import choose
from .reach.endpoint import Endpoint, StubT
from .reach.kinds import Decoder, DecoderEndpoint, Encoder, Pools
from .reach.pool import Pool

InfoT = TypeVar("InfoT", Encoder, Decoder)


class Capabilities:
    """The services as this gateway sees them, checked against its own checkpoint.

    What was chosen last holds while nobody can be reached: cached media need no encoder.
    """

    def __init__(self, checkpoint: Checkpoint, pools: Pools) -> None:
        self.checkpoint_digest = own_digest(checkpoint)
        self.last_encoder: Encoder | None = None
        self.last_decoder: Decoder | None = None
        self._checkpoint = checkpoint
        self._pools = pools

    async def decoder(self, prefix: bytes, *, with_media: bool) -> Decoder:
        """What the decoder for a prompt's `prefix` runs, where possible one with a fitting encoder if that is needed.

        Raises VersionMismatch when those that can be reached do not fit this gateway, ServiceUnavailable when nothing
        is known of any.
        """
        found = await self._pools.decoders.settled()
        fitting = _fitting(found, self.require_decoder)
        if with_media:
            fitting = [one for one in fitting if one.info and self._has_encoder(one.info)] or fitting
        self.last_decoder = _chosen("decoder", prefix, fitting, self.last_decoder)
        return self.last_decoder

    async def encoder(self, decoder: Decoder, prefix: bytes) -> Encoder:
        """What the encoders for a prompt run; all its media go to such. Raises as `decoder` does."""
        found = await self._pools.encoders.settled()
        last = self.last_encoder
        if last is not None and last.checkpoint_digest != decoder.checkpoint_digest:
            last = None
        fitting = _fitting(found, lambda encoder: self.require_encoder(encoder, decoder))
        self.last_encoder = _chosen("encoder", prefix, fitting, last)
        return self.last_encoder

    def require_decoder(self, decoder: Decoder) -> None:
        """Raises VersionMismatch when `decoder` does not fit this gateway."""
        expected = self.checkpoint_digest or decoder.checkpoint_digest
        _require_equal("checkpoint of gateway and decoder", expected, decoder.checkpoint_digest)
        _require_equal("vocabulary of gateway and decoder", self._checkpoint.text.vocab_size, decoder.vocab_size)
        merge_size = self._checkpoint.preprocessor.merge_size
        _require_equal("merge size of gateway and decoder", merge_size, decoder.merge_size)

    def require_encoder(self, encoder: Encoder, decoder: Decoder) -> None:
        """Raises VersionMismatch when `encoder` does not fit `decoder` or this gateway's media rules."""
        _require_equal("checkpoint of encoder and decoder", decoder.checkpoint_digest, encoder.checkpoint_digest)
        _require_equal("width of encoder and decoder", decoder.width, encoder.width)
        _require_equal("preprocessing", self._checkpoint.preprocessor.version, encoder.preprocessing)

    def fitting_decoders(self) -> list[DecoderEndpoint]:
        """Those that can be reached and fit this gateway."""
        with suppress(VersionMismatch):
            return _fitting(self._pools.decoders.usable, self.require_decoder)
        return []

    def misfits(self) -> dict[tuple[str, str], str]:
        """What differs, by kind and address, of each that can be reached and gets no requests because of it."""
        return {
            **_misfits(self._pools.decoders, self.require_decoder),
            **_misfits(self._pools.encoders, self._require_use),
        }

    def has_pair(self) -> bool:
        """Whether an encoder and a decoder can be reached that fit this gateway and each other."""
        return any(one.info is not None and self._has_encoder(one.info) for one in self.fitting_decoders())

    def _require_use(self, encoder: Encoder) -> None:
        """Raises VersionMismatch when `encoder` does not fit this gateway, or none of the decoders that do."""
        expected = self.checkpoint_digest or encoder.checkpoint_digest
        _require_equal("checkpoint of gateway and encoder", expected, encoder.checkpoint_digest)
        _require_equal("preprocessing", self._checkpoint.preprocessor.version, encoder.preprocessing)
        _fitting(self.fitting_decoders(), lambda decoder: self.require_encoder(encoder, decoder))

    def _has_encoder(self, decoder: Decoder) -> bool:
        with suppress(VersionMismatch):
            return bool(_fitting(self._pools.encoders.usable, lambda encoder: self.require_encoder(encoder, decoder)))
        return False


def profile_of(encoder: Encoder) -> CacheProfile:
    """What an encoder's embeddings depend on besides the pixels."""
    return CacheProfile(encoder.vision_digest, encoder.dtype, encoder.preprocessing)


def own_digest(checkpoint: Checkpoint) -> str:
    """The digest of the gateway's own copy; "" where it has the configs only, and no weights to compare."""
    has_weights = any(checkpoint.path.glob("*.safetensors"))
    return checkpoint.digest() if has_weights else ""


def _fitting(found: Sequence[Endpoint[StubT, InfoT]], require: Callable[[InfoT], None]) -> list[Endpoint[StubT, InfoT]]:
    """Those of whom `require` holds. Raises its VersionMismatch when it holds of none."""
    fitting, misfits = [], []
    for endpoint in found:
        try:
            if endpoint.info is not None:
                require(endpoint.info)
                fitting.append(endpoint)
        except VersionMismatch as error:
            misfits.append(error)
    if misfits and not fitting:
        raise misfits[0]
    return fitting


def _misfits(pool: Pool[StubT, InfoT], require: Callable[[InfoT], None]) -> dict[tuple[str, str], str]:
    misfits = {}
    for endpoint in pool.usable:
        try:
            _fitting([endpoint], require)
        except VersionMismatch as error:
            misfits[pool.kind.name, endpoint.address] = error.message
    return misfits


def _chosen(service: str, prefix: bytes, fitting: Sequence[Endpoint[StubT, InfoT]], last: InfoT | None) -> InfoT:
    info = choose(prefix, fitting).info if fitting else last
    if info is None:
        raise ServiceUnavailable(service)
    return info


def _require_equal(subject: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise VersionMismatch(subject, str(expected), str(actual))
