"""`python -m tests.faults [PROOF ...]`: runs proofs, prints their figures, and keeps them for the page.

Ends with 1 when a figure misses its bar.
"""

import argparse
import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from tests.faults import faults, results
from tests.faults.results import Figure

Proof = Callable[[argparse.Namespace], Coroutine[Any, Any, list[Figure]]]

PROOFS: dict[str, Proof] = {
    faults.PROOF: lambda options: faults.prove(options.requests, options.interval, options.seed),
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
    parser.add_argument("--interval", type=float, default=2.0, help="seconds from one fault to the next")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and the faults")
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="leave the page as it is")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
