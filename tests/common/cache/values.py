"""What the cache's tests put into it."""

from collections.abc import Callable

import numpy as np

from services.common.embedding import CachedManifest, Slice
from services.common.keys import tenant_key
from tests.redis_servers import Backend

Find = Callable[[str], Backend]

KEY, OTHER = b"k" * 32, b"o" * 32
TENANT = tenant_key(b"", "acme")
MANIFEST = CachedManifest((2, 4, 6), 8, "float32", (KEY, OTHER))
LARGE_ROWS = 300_000  # 9.6 MB: three chunks in Redis


def embedding(num_rows: int = 6, seed: int = 0) -> Slice:
    """Random rows of width 8."""
    rows = np.random.default_rng(seed).random((num_rows, 8), dtype=np.float32)
    return Slice(num_rows, 8, "float32", rows.data.cast("B"))
