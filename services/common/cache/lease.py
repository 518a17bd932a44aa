"""One of many processes does a piece of work, and the others wait for what it puts into the cache.

A lease is a key beside the value's, which lapses unless its holder renews it. So when a leader dies, whoever waits gets
the lease next and does the work itself. Without a store that answers there are no leases: everybody works.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Protocol

from services.common.cache.errors import StoreError

LEASE_S = 2.0
RENEW_S = LEASE_S / 4
POLL_S = 0.05


class Claim(Enum):
    """What became of asking for a lease: `DONE` says that the value is there."""

    MINE = "mine"
    TAKEN = "taken"
    DONE = "done"


class LeaseStore(Protocol):
    """Leases beside values, each held under a token. Every method may raise StoreError."""

    async def claim(self, names: Sequence[str], token: str, lease_s: float) -> list[Claim]: ...
    async def renew(self, tokens: Mapping[str, str], lease_s: float) -> list[bool]: ...
    async def release(self, tokens: Mapping[str, str]) -> None: ...


class Patience(Protocol):
    """Until when somebody waits, in the loop's time; may move later."""

    deadline: float


@dataclass(eq=False, slots=True)
class _Ask:
    name: str
    answer: "asyncio.Future[Claim | None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Leases:
    """This process's leases. Whatever it wants of the store within one turn of the loop goes there together.

    Each round of claims has a token that nobody has had before. It fences the lease, not the value: a leader that was
    stalled for longer than its lease cannot renew or release what is its heir's by now. Its value may still arrive, and
    is as good as the heir's: the name says what it is of.
    """

    def __init__(self, store: LeaseStore) -> None:
        self._store = store
        self._process, self._rounds = secrets.token_hex(16), count()
        self._asking: list[_Ask] = []
        self._held: dict[str, str] = {}
        self._given_back: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self, name: str, patience: Patience) -> AsyncIterator[bool]:
        """Wait for the lease of a value, and hold it inside the block. Yields whether the value is there already.

        Waits no longer than `patience`, and not at all for a store that does not answer; the block then runs without.
        """
        claim = await self._claim(name, patience)
        try:
            yield claim is Claim.DONE
        finally:
            if claim is Claim.MINE:
                self._give_back(name)

    async def close(self) -> None:
        """Give everything back."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self._given_back |= self._held
        await self._release()

    async def _claim(self, name: str, patience: Patience) -> Claim | None:
        ask, loop = _Ask(name), asyncio.get_running_loop()
        self._asking.append(ask)
        self._start()
        try:
            while not ask.answer.done() and (left_s := patience.deadline - loop.time()) > 0:
                await asyncio.wait({ask.answer}, timeout=left_s)
            return ask.answer.result() if ask.answer.done() else None
        except asyncio.CancelledError:
            if ask.answer.done() and ask.answer.result() is Claim.MINE:
                self._give_back(name)
            raise
        finally:
            ask.answer.cancel()

    def _give_back(self, name: str) -> None:
        if token := self._held.pop(name, None):
            self._given_back[name] = token
            self._start()

    def _start(self) -> None:
        self._wake.set()
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Works as long as somebody waits or holds something."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + RENEW_S
        while self._asking or self._held or self._given_back:
            await asyncio.sleep(0)  # let others of this turn ask, too
            self._wake.clear()
            await self._release()
            await self._ask()
            if loop.time() >= renew_at:
                await self._renew()
                renew_at = loop.time() + RENEW_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if self._asking else max(renew_at - loop.time(), 0)):
                    await self._wake.wait()

    async def _ask(self) -> None:
        asks = [ask for ask in self._asking if not ask.answer.done()]
        self._asking = []
        token = f"{self._process}-{next(self._rounds)}"
        claims: Sequence[Claim | None] = [None] * len(asks)
        with contextlib.suppress(StoreError):
            if asks:
                claims = await self._store.claim([ask.name for ask in asks], token, LEASE_S)
        for ask, claim in zip(asks, claims, strict=True):
            if claim is Claim.TAKEN:
                self._asking.append(ask)
                continue
            if claim is Claim.MINE:
                self._held[ask.name] = token
            if not ask.answer.done():
                ask.answer.set_result(claim)
            elif claim is Claim.MINE:  # nobody waits for it any more
                self._give_back(ask.name)

    async def _renew(self) -> None:
        if not (held := dict(self._held)):
            return
        with contextlib.suppress(StoreError):  # tried again, or it lapses: a miss for the others
            for name, is_ours in zip(held, await self._store.renew(held, LEASE_S), strict=True):
                if not is_ours and self._held.get(name) == held[name]:
                    del self._held[name]

    async def _release(self) -> None:
        given_back, self._given_back = self._given_back, {}
        with contextlib.suppress(StoreError):  # it lapses by itself
            if given_back:
                await self._store.release(given_back)
