"""The endpoints of one service, as they come and go."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic
from typing import Generic

import grpc
import structlog

from services.common.errors import ServiceUnavailable

from .addresses import Resolver, Target, system_resolver
from .choice import choose
from .endpoint import Endpoint, InfoT, Kind, Status, StubT
from .refusals import Wish
from .retries import RetryBudget

RESOLVE_S = 2.0

log = structlog.get_logger()


class Pool(Generic[StubT, InfoT]):
    """Keeps one endpoint an address and picks among them. `open_channel` takes a gRPC target."""

    def __init__(
        self,
        kind: Kind[StubT, InfoT],
        target: Target,
        open_channel: Callable[[str], grpc.aio.Channel],
        resolver: Resolver = system_resolver,
    ) -> None:
        self.kind = kind
        self.budget = RetryBudget()
        self._target, self._open_channel, self._resolver = target, open_channel, resolver
        self._endpoints: dict[str, Endpoint[StubT, InfoT]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._has_looked = False
        self._num_expected = 0
        self._change = asyncio.Event()

    @property
    def usable(self) -> list[Endpoint[StubT, InfoT]]:
        """The endpoints that calls may go to; what each of them runs is known."""
        return [endpoint for endpoint in self._endpoints.values() if endpoint.status is Status.USABLE]

    @property
    def endpoints(self) -> list[Endpoint[StubT, InfoT]]:
        """All that are known, whether calls may go to them or not."""
        return list(self._endpoints.values())

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Pool[StubT, InfoT]"]:
        """Look for endpoints and watch them meanwhile."""
        looking = asyncio.create_task(self._look_again())
        try:
            yield self
        finally:
            tasks = [looking, *self._renewals.values(), *self._watches.values(), *self._leaving]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints.values()))

    def renew(self) -> None:
        """Connect anew to all, in the place of each present connection once that works. Calls on the old ones go on."""
        for address in self._endpoints:
            self._stop_renewal(address)
            self._renewals[address] = asyncio.create_task(self._renew(address))

    async def settled(self) -> list[Endpoint[StubT, InfoT]]:
        """The usable endpoints; waits for the first while one may still turn out to be. May be empty."""
        while not (found := self.usable) and self._is_settling:
            await self.change.wait()
        return found

    @contextmanager
    def expecting(self, wish: Wish) -> Iterator[None]:
        """While a call is being prepared that will then pick. Raises Overloaded when every endpoint would refuse it."""
        if usable := self.usable:
            _willing(usable, wish, self._num_expected // len(usable))
        self._num_expected += 1
        try:
            yield
        finally:
            self._num_expected -= 1

    async def pick(  # noqa: PLR0913 -- what there is to choose by
        self,
        key: bytes,
        info: InfoT,
        *,
        avoid: Endpoint[StubT, InfoT] | None = None,
        prefer: Endpoint[StubT, InfoT] | None = None,
        patience_s: float = 0.0,
        wish: Wish | None = None,
    ) -> Endpoint[StubT, InfoT]:
        """The endpoint for `key` among those that run exactly `info`: `prefer`, or not `avoid`, if there is another.

        Raises ServiceUnavailable when there is none within `patience_s`, Overloaded when all have refused as much as
        `wish` just now; with one that has not, the others are passed over.
        """
        end = monotonic() + patience_s
        while not (candidates := [endpoint for endpoint in await self.settled() if endpoint.info == info]):
            if (left := end - monotonic()) <= 0:
                raise ServiceUnavailable(self.kind.name)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.change.wait(), left)
        willing = candidates if wish is None else _willing(candidates, wish)
        return choose(key, willing, avoid=avoid, prefer=prefer)

    @property
    def change(self) -> asyncio.Event:
        """Set as soon as an endpoint comes, goes, or becomes better or worse after now."""
        return self._change

    @property
    def _is_settling(self) -> bool:
        endpoints = self._endpoints.values()
        return not self._has_looked or any(endpoint.status is Status.SETTLING for endpoint in endpoints)

    def _note_change(self) -> None:
        self._change.set()
        self._change = asyncio.Event()  # who waited goes on; who comes now waits for the next change

    async def _look_again(self) -> None:
        while True:
            try:
                self._take(await self._target.resolve(self._resolver))
            except OSError as error:
                log.warning("name not resolved", kind=self.kind.name, reason=str(error))
            if not self._has_looked:
                self._has_looked = True
                self._note_change()
            if self._target.fixed:
                return
            await asyncio.sleep(RESOLVE_S)

    def _take(self, addresses: list[str]) -> None:
        """Take up new addresses and let go of those that are gone."""
        for address in self._endpoints.keys() - set(addresses):
            self._drop(address)
        for address in addresses:
            if address not in self._endpoints:
                self._add(address)

    def _add(self, address: str) -> None:
        self._endpoints[address], self._watches[address] = self._opened(address)
        log.info("endpoint added", kind=self.kind.name, address=address)
        self._note_change()

    def _drop(self, address: str) -> None:
        self._stop_renewal(address)
        self._retire(address)
        log.info("endpoint dropped", kind=self.kind.name, address=address)
        self._note_change()

    async def _renew(self, address: str) -> None:
        endpoint, watch = self._opened(address)
        try:
            while endpoint.status is not Status.USABLE:
                await self.change.wait()
        except asyncio.CancelledError:
            watch.cancel()
            await endpoint.close()
            raise
        self._retire(address)
        self._endpoints[address], self._watches[address] = endpoint, watch
        del self._renewals[address]
        log.info("endpoint renewed", kind=self.kind.name, address=address)
        self._note_change()

    def _stop_renewal(self, address: str) -> None:
        if (renewal := self._renewals.pop(address, None)) is not None:
            self._let_go(renewal)
            renewal.cancel()

    def _opened(self, address: str) -> tuple[Endpoint[StubT, InfoT], asyncio.Task[None]]:
        channel = self._open_channel(address)
        endpoint = Endpoint(self.kind, address, channel, self._note_change, is_needed=lambda: not self.usable)
        return endpoint, asyncio.create_task(endpoint.watch())

    def _retire(self, address: str) -> None:
        endpoint, watch = self._endpoints.pop(address), self._watches.pop(address)

        async def leave() -> None:
            try:
                await endpoint.idle()
            finally:
                watch.cancel()
                await endpoint.close()

        self._let_go(asyncio.create_task(leave()))

    def _let_go(self, task: asyncio.Task[None]) -> None:
        """Whatever ends by itself is waited for at the end at most."""
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _willing(
    endpoints: Sequence[Endpoint[StubT, InfoT]], wish: Wish, num_expected: int = 0
) -> list[Endpoint[StubT, InfoT]]:
    """Those of `endpoints` that have not just refused as much, `num_expected` calls at each being on their way.

    Raises Overloaded when there is none.
    """
    refusals = {endpoint: endpoint.refusal(wish, num_expected) for endpoint in endpoints}
    willing = [endpoint for endpoint, refusal in refusals.items() if refusal is None]
    if not willing:
        raise min((refusal for refusal in refusals.values() if refusal), key=lambda refusal: refusal.retry_after_s)
    return willing
