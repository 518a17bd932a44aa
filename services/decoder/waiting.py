"""Who waits for a place in the batch, and whose turn it is."""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from services.decoder.sequence import Sequence


class WaitingQueue:
    """Sequences put back to be recomputed first, by arrival; then tenants take turns, each first come, first served."""

    def __init__(self) -> None:
        self._preempted: list[Sequence] = []
        self._tenants: OrderedDict[str, deque[Sequence]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._preempted) + sum(len(queue) for queue in self._tenants.values())

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for queue in self._tenants.values():
            yield from queue

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of its tenant's queue."""
        self._tenants.setdefault(sequence.request.tenant, deque()).append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Put a preempted sequence before everything new."""
        insort(self._preempted, sequence, key=lambda waiting: waiting.rank)

    def next_ready(self, is_ready: Callable[[Sequence], bool]) -> Sequence | None:
        """The sequence whose turn it is among those that could be worked on."""
        return next(filter(is_ready, self), None)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, if it is there; it is the next tenant's turn then."""
        if sequence in self._preempted:
            self._preempted.remove(sequence)
            return
        tenant = sequence.request.tenant
        queue = self._tenants.get(tenant)
        if queue is None or sequence not in queue:
            return
        queue.remove(sequence)
        if queue:
            self._tenants.move_to_end(tenant)
        else:
            del self._tenants[tenant]
