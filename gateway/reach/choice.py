"""Which endpoint takes a call: the one that its key belongs to, unless that one has more to do than the others."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

LOAD_FACTOR = 1.25
LOAD_SLACK = 2.0


class Candidate(Protocol):
    """What the choice looks at. `load` counts calls; `is_full`: a new one would have to wait for memory."""

    @property
    def address(self) -> str: ...
    @property
    def load(self) -> float: ...
    @property
    def is_full(self) -> bool: ...


CandidateT = TypeVar("CandidateT", bound=Candidate)


def choose(
    key: bytes,
    candidates: Sequence[CandidateT],
    *,
    avoid: CandidateT | None = None,
    prefer: CandidateT | None = None,
) -> CandidateT:
    """The candidate for `key`; not `avoid` if there is another, and `prefer` if it is one and not to be avoided.

    Rendezvous hashing (Thaler and Ravishankar 1996): every gateway ranks alike, and when an endpoint comes or goes only
    its own keys move. Bounded load (Mirrokni, Thorup and Zadimoghaddam 2016): whoever is above LOAD_FACTOR times the
    mean plus LOAD_SLACK calls, or is full, is passed over for the next in rank.
    """
    if prefer is not None and prefer is not avoid and prefer in candidates:
        return prefer
    ranked = sorted(candidates, key=lambda candidate: _weight(key, candidate.address), reverse=True)
    ranked = [candidate for candidate in ranked if candidate is not avoid] or ranked
    bound = LOAD_FACTOR * sum(candidate.load for candidate in candidates) / len(candidates) + LOAD_SLACK
    free = (candidate for candidate in ranked if candidate.load <= bound and not candidate.is_full)
    return next(free, ranked[0])


def _weight(key: bytes, address: str) -> bytes:
    return blake2b(address.encode(), key=blake2b(key).digest(), digest_size=8).digest()
