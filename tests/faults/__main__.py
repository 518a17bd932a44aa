"""`python -m tests.faults [PROOF ...]`: runs proofs, prints their figures, and keeps them for the page.

Ends with 1 when a figure misses its bar.
"""

import argparse
import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from tests.faults import cancels, crowds, deaths, faults, overload, redis_outage, results, rolling, slow_reader
from tests.faults.results import Figure
from tests.faults.stage import METRICS, Stage, stage

Proof = Callable[[argparse.Namespace], Coroutine[Any, Any, list[Figure]]]
MAX_REQUEST_S = 2.0
MAX_PROOF_S = 1800.0


Play = Callable[[Stage], Coroutine[Any, Any, list[Figure]]]
SHORT_REQUESTS = {"DIPTYCH_GATEWAY_MAX_REQUEST_S": str(MAX_REQUEST_S)}


def on_stage(prove: Play, num_replicas: int, settings: Mapping[str, str] = MappingProxyType({})) -> Proof:
    """A proof on a fleet of its own."""

    async def run(_options: argparse.Namespace) -> list[Figure]:
        async with stage(num_replicas, settings) as found:
            return await prove(found)

    return run


PROOFS: dict[str, Proof] = {
    "faults": lambda options: faults.prove(options.requests, options.interval, options.seed, options.seconds),
    "rolling": on_stage(rolling.prove, 2),
    "redis": on_stage(redis_outage.prove, 1, redis_outage.SETTINGS),
    "herd": on_stage(crowds.prove_herd, 2, METRICS),
    "deadlines": on_stage(lambda found: crowds.prove_deadlines(found, MAX_REQUEST_S), 1, SHORT_REQUESTS),
    "decoder-killed": on_stage(deaths.prove_decoder, 2),
    "decoder-stopped": on_stage(deaths.prove_stopped, 2),
    "encoder-killed": on_stage(deaths.prove_encoder, 2),
    "slow-reader": on_stage(slow_reader.prove, 1, slow_reader.SETTINGS),
    "overload": on_stage(overload.prove, 1, overload.SETTINGS),
    "overload-default": on_stage(overload.prove_by_default, 1, overload.DEFAULT_SETTINGS),
    "cancels": lambda options: on_stage(
        lambda found: cancels.prove(found, options.cancels, options.seconds), 1, METRICS
    )(options),
}


def main() -> int:
    """The exit code."""
    options = _parser().parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    taken: list[Figure] = []
    for name in options.proofs or PROOFS:
        found = asyncio.run(PROOFS[name](options))
        results.show(found)
        taken += found
    if options.keep:
        results.keep(taken)
    return 0 if all(item.holds for item in taken) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("proofs", nargs="*", help=f"all unless named: {', '.join(PROOFS)}")
    parser.add_argument("--requests", type=int, default=10_000, help="requests in the storm")
    parser.add_argument("--seconds", type=float, default=MAX_PROOF_S, help="end storm and cancels then, with fewer")
    parser.add_argument("--cancels", type=int, default=100_000, help="streams that are cancelled")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds from one fault to the next")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and the faults")
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="leave the page as it is")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
