"""What tenants may have: calls and costs under way at this gateway and taken in a minute, and bytes in the cache."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from diptych.v1 import generation_pb2

from services.common.errors import Overloaded, QuotaExceeded
from services.common.identity import TENANT, current_identity
from services.common.interceptors import Context, Handler, behaviour_of, with_behaviour
from services.common.watched_files import watched_text

from .media import MediaItem
from .rates import Rate

_COUNTED = "/diptych.v1.ChatService/"
_FREE = "/diptych.v1.ChatService/PurgeMedia"  # who has filled its quota may still take its data away


@dataclass(frozen=True, slots=True)
class Quota:
    """The most of each, at a time or in a minute; 0 is no limit."""

    calls: int = 0
    cost: int = 0
    cache_bytes: int = 0
    requests_per_minute: int = 0
    cost_per_minute: int = 0


_NO_QUOTA = Quota()


class QuotaFileError(ValueError):
    """A file of quotas cannot be used."""


def parse_quotas(text: str, default: Quota = _NO_QUOTA) -> dict[str, Quota]:
    """A line each: tenant and limits in the order of Quota, of which the last may be left out and are the default's.

    `#` starts a comment. Raises QuotaFileError.
    """
    quotas: dict[str, Quota] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        tenant, *limits = fields
        if len(limits) not in range(2, 6) or not TENANT.fullmatch(tenant) or not all(map(str.isdecimal, limits)):
            layout = "tenant, calls, cost, and maybe cache bytes, requests per minute, cost per minute"
            raise QuotaFileError(f"line {number} is not: {layout}")
        quotas[tenant] = Quota(*map(int, limits), *astuple(default)[len(limits) :])
    return quotas


class Quotas:
    """Counts what each tenant has under way and has taken. `default` holds for tenants that the file does not name.

    `refused` is told which quota each refusal was for.
    """

    def __init__(
        self,
        default: Quota,
        file: Path | None = None,
        *,
        max_calls: int,
        refused: Callable[[str], None] = lambda _quota: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._default, self._max_calls, self._refused = default, max_calls, refused
        self._file = watched_text(file, partial(parse_quotas, default=default), "quotas") if file is not None else None
        self._calls: Counter[str] = Counter()
        self._cost: Counter[str] = Counter()
        self._requests_taken, self._cost_taken = Rate(clock), Rate(clock)

    @property
    def are_all_taken(self) -> bool:
        """Whether all tenants together have as many calls under way as there may be."""
        return self._calls.total() >= self._max_calls

    @contextmanager
    def call(self, tenant: str) -> Iterator[None]:
        """One call under way. Raises QuotaExceeded, or Overloaded when all tenants together have too many."""
        if self.are_all_taken:
            raise _too_many_calls()
        with self._held(self._calls, tenant, 1, self._of(tenant).calls, "calls"):
            self.take_requests(tenant, 1)
            yield

    def take_requests(self, tenant: str, count: int) -> None:
        """Requests of this minute. Raises QuotaExceeded."""
        limit = self._of(tenant).requests_per_minute
        self._take(self._requests_taken, tenant, count, limit, "requests per minute")

    @contextmanager
    def cost(self, tenant: str, cost: int, unused: Callable[[], int]) -> Iterator[None]:
        """A conversation under way. Raises QuotaExceeded. `unused` tells at its end what of `cost` was not needed."""
        quota = self._of(tenant)
        with self._held(self._cost, tenant, cost, quota.cost, "cost"):
            self._take(self._cost_taken, tenant, cost, quota.cost_per_minute, "cost per minute")
            try:
                yield
            finally:
                self._cost_taken.give_back(tenant, unused(), quota.cost_per_minute)

    def cache_bytes(self, tenant: str) -> int:
        """What the tenant may hold in the shared cache; 0 is no limit. Writers hold it, so gateways share it."""
        return self._of(tenant).cache_bytes

    def _of(self, tenant: str) -> Quota:
        named: Mapping[str, Quota] = self._file.read() if self._file is not None else {}
        return named.get(tenant, self._default)

    @contextmanager
    def _held(self, counts: Counter[str], tenant: str, amount: int, limit: int, quota: str) -> Iterator[None]:
        if limit and counts[tenant] + amount > limit:
            self._refused(quota)
            raise QuotaExceeded(quota, limit)
        counts[tenant] += amount
        try:
            yield
        finally:
            counts[tenant] -= amount
            if not counts[tenant]:
                del counts[tenant]

    def _take(self, rate: Rate, tenant: str, amount: int, limit: int, quota: str) -> None:
        if wait_s := rate.take(tenant, amount, limit):
            self._refused(quota)
            raise QuotaExceeded(quota, limit, retry_after_s=wait_s)


def cost_of(items: Sequence[MediaItem], num_prompt_tokens: int, generation: generation_pb2.Generation) -> int:
    """Patches and tokens that a conversation may take, answers at their longest."""
    num_patches = sum(item.plan.grid[0] * item.plan.grid[1] * item.plan.grid[2] for item in items)
    return num_patches + num_prompt_tokens + longest_answer(generation)


def longest_answer(generation: generation_pb2.Generation) -> int:
    """Tokens that all choices together may take."""
    return generation.num_choices * generation.max_tokens


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
        if self._quotas.are_all_taken and not handler.request_streaming:
            return _REFUSAL
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


def _too_many_calls() -> Overloaded:
    return Overloaded("the gateway has as many calls under way as it may")


async def _refuse(_requests: Any, _: Context) -> None:
    raise _too_many_calls()


_REFUSAL: Handler = grpc.stream_stream_rpc_method_handler(_refuse)  # no message is read, so its size costs nothing
