"""Cached values sealed for one tenant: AES-256-GCM under a key that HKDF derives from the cache's secret.

A sealed value opens only for its tenant and under the name it was stored with. Its dtype, shape and length stand in the
header inside, so that none of them can be changed either. Values of two secrets open, so that one can follow another.
"""

import os
from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common.embedding import CorruptValue

KEY_ID_BYTES, TAG_BYTES = 8, 16
NONCE_BYTES = 12  # random: one key may seal 2^32 values before two of them are likely to meet

_HEAD = b"DpSe\x01"
_KEY_ID_END = len(_HEAD) + KEY_ID_BYTES
_NONCE_END = _KEY_ID_END + NONCE_BYTES


class Seal:
    """Seals with the first of `secrets` and opens what any of them has sealed, for one tenant."""

    def __init__(self, secrets: Sequence[bytes], tenant: str = "") -> None:
        self._secrets = tuple(secrets)
        self._keys = {key_id(secret): _tenant_key(secret, tenant) for secret in self._secrets}

    def of(self, tenant: str) -> "Seal":
        """The same secrets for another tenant."""
        return Seal(self._secrets, tenant)

    def close(self, name: str, value: bytes | bytearray) -> bytes:
        """`value` sealed, to be stored under `name`."""
        head, nonce = _HEAD + key_id(self._secrets[0]), os.urandom(NONCE_BYTES)
        sealed = self._keys[head[len(_HEAD) :]].encrypt(nonce, value, head + name.encode())
        return b"".join((head, nonce, sealed))

    def open(self, name: str, value: bytes | bytearray) -> bytearray:
        """The value behind a sealed one. Raises CorruptValue for whatever is not its tenant's and its name's."""
        head, nonce = bytes(value[:_KEY_ID_END]), bytes(value[_KEY_ID_END:_NONCE_END])
        key = self._keys.get(head[len(_HEAD) :]) if head.startswith(_HEAD) else None
        opened = bytearray(max(len(value) - _NONCE_END - TAG_BYTES, 0))
        if key is None or len(value) < _NONCE_END + TAG_BYTES:
            raise CorruptValue("not sealed with a known secret")
        try:
            key.decrypt_into(nonce, memoryview(value)[_NONCE_END:], head + name.encode(), opened)
        except InvalidTag as error:
            raise CorruptValue("does not open") from error
        return opened


@lru_cache(maxsize=8)
def key_id(secret: bytes) -> bytes:
    """A public name of a secret."""
    return _derive(secret, b"diptych.seal.v1 key id", KEY_ID_BYTES)


@lru_cache(maxsize=1024)
def _tenant_key(secret: bytes, tenant: str) -> AESGCM:
    return AESGCM(_derive(secret, b"diptych.seal.v1 tenant " + tenant.encode(), 32))


def _derive(secret: bytes, purpose: bytes, num_bytes: int) -> bytes:
    return HKDF(SHA256(), num_bytes, salt=None, info=purpose).derive(secret)
