"""What must hold of every RPC, whatever was broken while it ran."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.fleet import Fleet
from tests.faults.traffic import Attempt, Record

DEADLINE_GRACE_S = 0.25
OWN_GRACE_S = 2.0  # of the client's own timer: gRPC looks once a second whether its busy pool needs another thread
KNOWN_REASONS = {
    "UNAVAILABLE": {"ENCODER_UNAVAILABLE", "DECODER_UNAVAILABLE"},
    "RESOURCE_EXHAUSTED": {"OVERLOADED"},
    "DEADLINE_EXCEEDED": {"DEADLINE_EXCEEDED"},
}


def violations(record: Record) -> Iterator[str]:
    """Every promise that a request broke, as a line each."""
    question = record.question
    for attempt in record.attempts:
        for problem in (*_of_the_end(attempt), *_of_the_answer(attempt, question.text, question.token_ids)):
            status = f"{attempt.code} {attempt.reason} {attempt.message!r}"
            yield f"{question.case.name}, {attempt.gateway.name}, {status}: {problem}"
    if record.kind == "plain" and not record.is_answered and record.attempts[-1].code not in KNOWN_REASONS:
        yield f"{question.case.name}: failed for good with {record.attempts[-1].code}"


def _of_the_end(attempt: Attempt) -> Iterator[str]:
    if attempt.num_ends != 1:
        yield f"ended {attempt.num_ends} times"
    late_s = attempt.elapsed_s - attempt.timeout_s
    is_own_timer = attempt.code == "DEADLINE_EXCEEDED" and not attempt.reason
    if late_s > (OWN_GRACE_S if is_own_timer else DEADLINE_GRACE_S):
        yield f"ended {late_s:.3f} s after its deadline"
    if attempt.code == "OK" or (attempt.code == "CANCELLED" and attempt.cancel_after_s is not None):
        return
    if attempt.reason:
        if attempt.reason not in KNOWN_REASONS.get(attempt.code, set()):
            yield "a reason that does not belong here"
    elif not _is_the_clients_own(attempt):
        yield "a status without an ErrorInfo"


def _is_the_clients_own(attempt: Attempt) -> bool:
    """Whether the client's own gRPC may have made the status: its timer ran out, or its connection broke."""
    if attempt.code == "DEADLINE_EXCEEDED":
        return attempt.elapsed_s > attempt.timeout_s - 0.05
    return attempt.code == "UNAVAILABLE" and attempt.started_at < attempt.gateway.disturbed_until


def _of_the_answer(attempt: Attempt, text: str, token_ids: Sequence[int]) -> Iterator[str]:
    if not text.startswith(attempt.text):
        yield "text that is no beginning of the right answer"
    events = attempt.events
    if events and (events[0] != "started" or "started" in events[1:] or "finished" in events[:-1]):
        yield f"events out of order: {events}"
    if attempt.code != "OK":
        return
    if not events or events[-1] != "finished":
        yield "a silent end"
    elif attempt.text != text or attempt.token_ids != tuple(token_ids):
        yield "another answer than the right one"


def count_retries(records: Sequence[Record]) -> Counter[int]:
    """How many plain requests were answered at which attempt; 0 is never."""
    plain = [record for record in records if record.kind == "plain"]
    return Counter(len(record.attempts) if record.is_answered else 0 for record in plain)


async def crossings(fleet: Fleet, cache_keys: dict[str, str]) -> list[str]:
    """What is wrong with two tenants' keys of the same picture: they must differ, and both be in Redis."""
    found = []
    if len(set(cache_keys.values())) != len(cache_keys):
        found.append("two tenants share a cache key")
    async with fleet.admin() as redis:
        names = {key.decode() async for key in redis.scan_iter(count=1000)}
    for tenant, key in cache_keys.items():
        if not any(key in name for name in names):
            found.append(f"{tenant}'s key is not in Redis")
    return found
