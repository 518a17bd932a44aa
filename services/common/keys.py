"""Every key of the caches, in one place.

A key is HMAC-SHA256(tenant key, fields), each field with its length in front, so that no two different lists of fields
read the same. Tenants never share a key, and nobody can compute another tenant's. A URL or a client's own name for a
thing is never part of a key: content is. A purge gives the tenant a new epoch and with it new keys, so that nobody asks
for what was stored before.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

SCHEMA = "diptych.embedding.v1"
KEY_BYTES = 32
EPOCH_BYTES = 16
TAG_BYTES = 16

Field: TypeAlias = str | bytes | int


@dataclass(frozen=True, slots=True)
class CacheProfile:
    """What an embedding depends on besides the pixels. `preprocessing` is `Preprocessor.version`."""

    vision_digest: str
    dtype: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose data: a tenant, and what its last purge has set; empty if there was none lately.

    `max_cache_bytes`: what it may hold in the shared cache; 0 is no limit.
    """

    tenant: str
    epoch: bytes = b""
    max_cache_bytes: int = 0


def tenant_key(secret: bytes, tenant: str, epoch: bytes = b"") -> bytes:
    """The 32-byte key from which all keys of one tenant are made, until a purge changes its epoch."""
    return _mac(secret, ["tenant", tenant, epoch] if epoch else ["tenant", tenant])


def tenant_tag(tenant: str) -> str:
    """What the names of all of a tenant's values begin with, so that a purge finds them, whatever secret is in use."""
    return _mac(b"", ["tag", tenant])[:TAG_BYTES].hex()


def digest_of(data: bytes | bytearray) -> str:
    """The public name of media: "sha256:" and the hexadecimal SHA-256 of the bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def media_key(  # noqa: PLR0913, PLR0917 -- everything a manifest depends on, and nothing else
    key: bytes,
    kind: str,
    file_digests: Sequence[bytes],
    height: int,
    width: int,
    frame_indices: Sequence[int],
    profile: CacheProfile,
) -> bytes:
    """Key of an item's manifest: the SHA-256 of each file, the size in pixels after resizing, and the frames used."""
    files: list[Field] = [len(file_digests), *file_digests]
    frames: list[Field] = [len(frame_indices), *frame_indices]
    return _mac(key, ["media", kind, *files, height, width, *frames, *_fields(profile)])


def slice_key(key: bytes, pixels_digest: bytes, height: int, width: int, profile: CacheProfile) -> bytes:
    """Key of one temporal slice's embedding.

    `pixels_digest` is the SHA-256 of the slice's resized uint8 RGB frames, [temporal_patch_size, height, width, 3]:
    identical pixels share a slice, whatever file they came from.
    """
    return _mac(key, ["slice", pixels_digest, height, width, *_fields(profile)])


def upload_key(key: bytes, digest: str) -> bytes:
    """Key of media kept under the digest that a client may name later."""
    return _mac(key, ["upload", digest])


def header_key(key: bytes, kind: str, digest: bytes) -> bytes:
    """Key of what a file's header says when it is read as `kind`; `digest` is the file's SHA-256."""
    return _mac(key, ["header", kind, digest])


def _fields(profile: CacheProfile) -> list[Field]:
    return [profile.vision_digest, profile.dtype, profile.preprocessing]


def _mac(key: bytes, fields: Iterable[Field]) -> bytes:
    mac = hmac.new(key, digestmod="sha256")
    for field in (SCHEMA, *fields):
        data = _encoded(field)
        mac.update(len(data).to_bytes(8, "little") + data)
    return mac.digest()


def _encoded(field: Field) -> bytes:
    if isinstance(field, int):
        return b"i" + field.to_bytes(8, "little")
    return b"s" + field.encode() if isinstance(field, str) else b"b" + field
