"""Whether requests should come here, as the health of ChatService tells it."""

import asyncio
from collections.abc import AsyncIterator

import structlog

from .capabilities import Capabilities
from .reach.kinds import Pools

log = structlog.get_logger()


async def readiness(pools: Pools, capabilities: Capabilities) -> AsyncIterator[bool]:
    """Yields at each change; first False.

    True once an encoder and a decoder that fit this gateway and each other have been there. False again only while
    decoders are there and none fits: an upgrade has gone past this gateway, and others can answer. When nobody is there
    it stays as it is: no other gateway would do better, and this one names what is missing.
    """
    is_ready, told = False, dict[tuple[str, str], str]()
    yield is_ready
    while True:
        changes = pools.encoders.change, pools.decoders.change
        if is_ready != (is_ready := _is_ready(pools, capabilities, was_ready=is_ready)):
            yield is_ready
        misfits = capabilities.misfits()
        for (kind, address), difference in misfits.items() - told.items():
            log.warning("endpoint left out", kind=kind, address=address, reason=difference)
        told = misfits
        await _first_of(*changes)


def _is_ready(pools: Pools, capabilities: Capabilities, *, was_ready: bool) -> bool:
    if not pools.decoders.usable:
        return was_ready
    return bool(capabilities.fitting_decoders()) if was_ready else capabilities.has_pair()


async def _first_of(*changes: asyncio.Event) -> None:
    tasks = [asyncio.create_task(change.wait()) for change in changes]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
