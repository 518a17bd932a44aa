"""Three times the load that can be served: what is answered in time stays, and the rest is told so at once."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.storm import pin
from tests.faults.arrivals import DEADLINE_S, Offered
from tests.faults.fleet import TENANTS
from tests.faults.results import ROOT, Figure, figure
from tests.faults.stage import Stage, percentile

PROOF, BY_DEFAULT = "overload", "overload-default"
FACTOR, GOODPUT_BAR, REFUSAL_BAR_MS = 3, 0.9, 50.0
FIRST_RATE, RATE_STEP, KEEPS_UP = 12.0, 1.5, 0.6
OFFER_S, NUM_ROUNDS = 10.0, 3
NUM_SLOTS = 8  # few, so that the decoder is what there is too little of
DEFAULT_SETTINGS = {"DIPTYCH_DECODER_MAX_SEQUENCES": str(NUM_SLOTS)}
SETTINGS = {**DEFAULT_SETTINGS, "DIPTYCH_GATEWAY_MAX_CALLS": str(NUM_SLOTS * 3 // 2)}


@dataclass(frozen=True)
class _Round:
    """The most that was answered in time, and what came of three times that right after."""

    peak: float
    over: Offered

    @property
    def share(self) -> float:
        """Goodput of the overload over the peak."""
        return self.over.goodput / self.peak


async def prove(stage: Stage) -> list[Figure]:
    """With as many calls let in as the docs advise: goodput, and refusals."""
    rounds = await _rounds(stage)
    over = sum((one.over for one in rounds), Offered())
    half_ms, slowest_ms = (percentile(over.refused_ms or [0.0], share) for share in (0.5, 0.99))
    late_ms = percentile(over.behind_ms, 0.99)
    return [
        _goodput(PROOF, rounds),
        figure(PROOF, f"refusals ({_told(over.refused_with)}; asked for {late_ms:.0f} ms late at the 99th percentile):"
               " median and 99th percentile; without a time to come back",
               f"{half_ms:.0f} ms, {slowest_ms:.0f} ms; {over.num_untold}", f"{REFUSAL_BAR_MS:.0f} ms; 0",
               bool(over.refused_ms) and slowest_ms <= REFUSAL_BAR_MS and not over.num_untold),
    ]  # fmt: skip


async def prove_by_default(stage: Stage) -> list[Figure]:
    """With the gateway's bound left as it is, far above what can be answered: goodput."""
    return [_goodput(BY_DEFAULT, await _rounds(stage))]


async def _rounds(stage: Stage) -> list[_Round]:
    """Peak and overload in turn, because the speed of a shared machine changes within minutes."""
    _part(stage)
    await _offer(stage, FIRST_RATE)  # warm
    return [await _round(stage) for _ in range(NUM_ROUNDS)]


async def _round(stage: Stage) -> _Round:
    """Offer more and more until answers no longer follow; then three times as much as was ever answered in time."""
    peak, rate, keeps_up = 0.0, FIRST_RATE, True
    while keeps_up:
        offered = await _offer(stage, rate)
        peak, rate, keeps_up = max(peak, offered.goodput), rate * RATE_STEP, _keeps_up(offered)
    assert peak, "nothing was answered in time"
    while _keeps_up(over := await _offer(stage, FACTOR * peak)):  # the machine is faster than it was
        peak = max(peak, over.goodput)
    return _Round(peak, over)


def _keeps_up(offered: Offered) -> bool:
    return offered.codes["OK"] > KEEPS_UP * offered.codes.total()


def _goodput(proof: str, rounds: Sequence[_Round]) -> Figure:
    codes = sum((one.over.codes for one in rounds), Counter[str]())
    shares = ", ".join(f"{one.over.goodput:.1f} of {one.peak:.1f}" for one in rounds)
    share = median(one.share for one in rounds)
    return figure(
        proof,
        f"{FACTOR} times the most that is answered within {DEADLINE_S:g} s, {NUM_ROUNDS} times ({_told(codes)}):"
        " answers within their deadline a second, of that most; the middle share",
        f"{shares}; {share:.0%}",
        f"{GOODPUT_BAR:.0%}",
        share >= GOODPUT_BAR,
    )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def _part(stage: Stage) -> None:
    """Encoder and decoder on one core: the gateway and who calls it find the other one free, as on other machines."""
    for replica in (*stage.fleet.encoders, *stage.fleet.decoders):
        pin(replica.pid, max(os.sched_getaffinity(0)))


async def _offer(stage: Stage, rate: float) -> Offered:
    """By a process of its own, past the gateway's proxy: what is measured does not wait for who measures."""
    child, token = stage.fleet.gateways[0].child, stage.fleet.tokens[TENANTS[0]]
    assert child is not None
    assert child.address is not None
    command = [sys.executable, "-m", "tests.faults.arrivals", child.address, str(rate), str(OFFER_S)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "DIPTYCH_TOKEN": token}
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"the load generator exited with {process.returncode}"
    found = json.loads(output)
    counts = {name: Counter(found[name]) for name in ("codes", "refused_with")}
    offered = Offered(**{**found, **counts})
    print(f"{rate:.1f} a second: {offered.goodput:.1f}, {_told(offered.codes)}", flush=True)
    return offered
