"""What may be under way at this gateway: calls, and of each tenant calls and costs; and its bytes in the cache."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from diptych.v1 import generation_pb2

from services.common.errors import Overloaded, QuotaExceeded
from services.common.identity import TENANT, current_identity
from services.common.interceptors import Context, behaviour_of, with_behaviour
from services.common.watched_file import WatchedFile

from .media import MediaItem

_COUNTED = "/diptych.v1.ChatService/"
_FREE = "/diptych.v1.ChatService/PurgeMedia"  # who has filled its quota may still take its data away


@dataclass(frozen=True, slots=True)
class Quota:
    """The most of each at a time; 0 is no limit. `cache_bytes` is None where only the default says it."""

    calls: int = 0
    cost: int = 0
    cache_bytes: int | None = None


class QuotaFileError(ValueError):
    """A file of quotas cannot be used."""


def parse_quotas(text: str) -> dict[str, Quota]:
    """A line each: tenant, calls, cost, maybe cache bytes; `#` starts a comment. Raises QuotaFileError."""
    quotas: dict[str, Quota] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        tenant, *limits = fields
        if len(limits) not in {2, 3} or not TENANT.fullmatch(tenant) or not all(map(str.isdecimal, limits)):
            raise QuotaFileError(f"line {number} is not: tenant, calls, cost, and maybe cache bytes")
        quotas[tenant] = Quota(*map(int, limits))
    return quotas


class Quotas:
    """Counts what each tenant has under way. `default` holds for tenants that the file does not name."""

    def __init__(self, default: Quota, file: Path | None = None, *, max_calls: int) -> None:
        self._default, self._max_calls = default, max_calls
        self._file = WatchedFile(file, parse_quotas, "quotas") if file is not None else None
        self._calls: Counter[str] = Counter()
        self._cost: Counter[str] = Counter()

    @contextmanager
    def call(self, tenant: str) -> Iterator[None]:
        """One call under way. Raises QuotaExceeded, or Overloaded when all tenants together have too many."""
        if self._calls.total() >= self._max_calls:
            raise Overloaded("the gateway has as many calls under way as it may")
        with _held(self._calls, tenant, 1, self._of(tenant).calls, "calls"):
            yield

    @contextmanager
    def cost(self, tenant: str, cost: int) -> Iterator[None]:
        """A conversation under way. Raises QuotaExceeded."""
        with _held(self._cost, tenant, cost, self._of(tenant).cost, "cost"):
            yield

    def cache_bytes(self, tenant: str) -> int:
        """What the tenant may hold in the shared cache; 0 is no limit. Writers hold it, so gateways share it."""
        own = self._of(tenant).cache_bytes
        return (self._default.cache_bytes or 0) if own is None else own

    def _of(self, tenant: str) -> Quota:
        named: Mapping[str, Quota] = self._file.read() if self._file is not None else {}
        return named.get(tenant, self._default)


def cost_of(items: Sequence[MediaItem], num_prompt_tokens: int, generation: generation_pb2.Generation) -> int:
    """Patches and tokens that a conversation may take, answers at their longest."""
    num_patches = sum(item.plan.grid[0] * item.plan.grid[1] * item.plan.grid[2] for item in items)
    return num_patches + num_prompt_tokens + generation.num_choices * generation.max_tokens


class QuotaInterceptor(grpc.aio.ServerInterceptor):
    """Counts the calls of each tenant. Stands behind the interceptor that finds out who calls."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or method == _FREE or not method.startswith(_COUNTED):
            return handler
        behaviour = behaviour_of(handler)

        async def answer(request: Any, context: Context) -> Any:
            with self._quotas.call(current_identity().tenant):
                return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncGenerator[Any]:
            with self._quotas.call(current_identity().tenant):
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response

        return with_behaviour(handler, stream if handler.response_streaming else answer)


@contextmanager
def _held(counts: Counter[str], tenant: str, amount: int, limit: int, quota: str) -> Iterator[None]:
    if limit and counts[tenant] + amount > limit:
        raise QuotaExceeded(quota, limit)
    counts[tenant] += amount
    try:
        yield
    finally:
        counts[tenant] -= amount
        if not counts[tenant]:
            del counts[tenant]
