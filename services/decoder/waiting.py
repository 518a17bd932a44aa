"""Who waits for a place in the batch, and whose turn it is.

Priority moves a request ahead, never out of reach: within a tenant it overtakes a bounded number of earlier ones, and
a tenant that is passed over gains with every turn that goes to another.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.decoder.sequence import Sequence

MAX_PRIORITY = 9
OVERTAKEN_PER_LEVEL = 16  # requests that came earlier, at most


def rank(num_arrived: int, sequence: Sequence) -> tuple[int, int, int]:
    """A sequence's place among all: as if it had come earlier by its priority; then by arrival, then by choice."""
    return (num_arrived - OVERTAKEN_PER_LEVEL * sequence.request.priority, num_arrived, sequence.index)


@dataclass(slots=True)
class _Tenant:
    """A tenant's waiting sequences by rank, and the turns that others have had since its own last one."""

    sequences: list[Sequence] = field(default_factory=list)
    num_passed: int = 0

    @property
    def claim(self) -> int:
        """Who has the greatest is next."""
        return self.sequences[0].request.priority + self.num_passed


class WaitingQueue:
    """Sequences put back to be recomputed first, by rank; then tenants in turn, each in the order of its ranks."""

    def __init__(self) -> None:
        self._preempted: list[Sequence] = []
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()  # who had a turn last comes last

    def __len__(self) -> int:
        return len(self._preempted) + sum(len(tenant.sequences) for tenant in self._tenants.values())

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, whose turn it is first."""
        yield from self._preempted
        for tenant in sorted(self._tenants.values(), key=lambda tenant: -tenant.claim):
            yield from tenant.sequences

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence into its tenant's queue."""
        tenant = self._tenants.setdefault(sequence.request.tenant, _Tenant())
        insort(tenant.sequences, sequence, key=lambda waiting: waiting.rank)

    def put_back(self, sequence: Sequence) -> None:
        """Put a preempted sequence before everything new."""
        insort(self._preempted, sequence, key=lambda waiting: waiting.rank)

    def next_ready(self, is_ready: Callable[[Sequence], bool]) -> Sequence | None:
        """The sequence whose turn it is among those that could be worked on."""
        return next(filter(is_ready, self), None)

    def take(self, sequence: Sequence) -> None:
        """Take out a sequence that has its turn now; if it is a new one, the other tenants have been passed over."""
        if sequence not in self._preempted:
            for name, tenant in self._tenants.items():
                tenant.num_passed = 0 if name == sequence.request.tenant else tenant.num_passed + 1
            self._tenants.move_to_end(sequence.request.tenant)
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, if it is there."""
        tenant = self._tenants.get(sequence.request.tenant)
        if sequence in self._preempted:
            self._preempted.remove(sequence)
        elif tenant is not None and sequence in tenant.sequences:
            tenant.sequences.remove(sequence)
            if not tenant.sequences:
                del self._tenants[sequence.request.tenant]
