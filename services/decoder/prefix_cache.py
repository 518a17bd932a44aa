"""What a block of keys and values depends on, as a hash: the tenant and every token and picture up to its end.

Equal hashes mean equal content, so a block may serve any sequence of the same tenant whose prompt starts alike. Pads
look alike for every picture; the media key and how far into the item the block starts tell them apart.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from services.decoder.sequence import MediaItem


def root_hash(tenant: str, salt: bytes = b"") -> bytes:
    """Where a tenant's chains start. A salt separates requests that must not share."""
    return blake2b(_framed(tenant.encode()) + _framed(salt), digest_size=32, person=b"diptych-prefix").digest()


def block_hash(parent: bytes, start: int, token_ids: Sequence[int], media: Sequence[MediaItem]) -> bytes:
    """Hash of the block holding `token_ids` from index `start` on, given its parent's hash (the root's, if first)."""
    state = blake2b(parent, digest_size=32, person=b"diptych-prefix")
    state.update(np.asarray(token_ids, dtype="<u4").tobytes())
    for item in media:
        if item.offset < start + len(token_ids) and start < item.end:
            state.update(struct.pack("<q", start - item.offset) + _framed(item.key))
    return state.digest()


def _framed(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value
