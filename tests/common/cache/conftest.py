"""Every kind of store, as the cache's tests see it."""

import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from services.common.cache import EmbeddingCache
from services.common.cache.memory import MemoryStore
from services.common.cache.redis import RedisStore
from services.common.cache.store import ByteStore
from services.common.seal import Seal
from tests.common.cache.values import Find
from tests.redis_servers import BACKENDS

# each kind of server, and both forms of values where the way to the server makes no difference to them
KINDS = [
    *(("memory", False), ("memory", True), ("valkey", False), ("redis", True), ("unix", False), ("acl", True)),
    *(("tls", False), ("cluster", False), ("cluster", True), ("sentinel", True)),
]


@pytest.fixture(scope="session")
def backend_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Find]:
    """Servers of each kind, started when a test first asks for it."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(BACKENDS[kind](tmp_path_factory.mktemp(kind))))


@pytest.fixture(params=KINDS, ids=lambda pair: f"{pair[0]}{'-sealed' if pair[1] else ''}")
def kind(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """A backend, and whether what it holds is sealed."""
    chosen: tuple[str, bool] = request.param
    return chosen


@pytest.fixture
async def store(kind: tuple[str, bool], backend_of: Find) -> AsyncIterator[ByteStore]:
    """An empty store of each kind."""
    if kind[0] == "memory":
        yield MemoryStore(ttl_s=60, max_bytes=64 << 20)
        return
    backend = backend_of(kind[0])
    backend.empty()
    opened = RedisStore(backend.url, ttl_s=60, timeout_s=30)  # patient, on a busy machine
    yield opened
    await opened.close()


@pytest.fixture
def cache(kind: tuple[str, bool], store: ByteStore) -> EmbeddingCache:
    """The cache over it, as one tenant sees it."""
    return EmbeddingCache(store, Seal([b"secret"]) if kind[1] else None).of("acme")
