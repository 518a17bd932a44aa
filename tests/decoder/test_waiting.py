"""Whose turn it is: priorities go first, and nobody waits for ever."""

from itertools import count

import numpy as np

from services.decoder.sequence import Event, Request, SamplingParams, Sequence
from services.decoder.waiting import MAX_PRIORITY, OVERTAKEN_PER_LEVEL, WaitingQueue, rank
from tests.decoder.harness import Answer, Model, Start

NUM_TURNS = 400


class Queue:
    """A queue that is given requests and asked for turns. Names are the order of arrival."""

    def __init__(self) -> None:
        self._waiting = WaitingQueue()
        self._arrivals = count(1)

    def add(self, tenant: str, priority: int = 0) -> str:
        """Let a request wait. Its name."""
        number = next(self._arrivals)
        request = Request(
            request_id=str(number),
            tenant=tenant,
            token_ids=[0],
            positions=np.zeros((3, 1), dtype=np.int64),
            delta=0,
            media=[],
            params=SamplingParams(1),
            root_hash=b"",
            on_event=lambda _: None,
            priority=priority,
        )
        sequence = request.sequences[0]
        sequence.rank = rank(number, sequence)
        self._waiting.add(sequence)
        return request.request_id

    def turn(self) -> str:
        """Give the next turn."""
        sequence = self._waiting.next_ready(lambda _: True)
        assert isinstance(sequence, Sequence)
        self._waiting.take(sequence)
        return sequence.request.request_id


def turns_before(patient: str, queue: Queue, *tenants: str) -> int:
    """Turns of others before a request's own, while each of these tenants sends an urgent request a turn."""
    for num_turns in range(NUM_TURNS):
        for tenant in tenants:
            queue.add(tenant, MAX_PRIORITY)
        if queue.turn() == patient:
            return num_turns
    raise AssertionError("it never had its turn")


def test_higher_priority_goes_first() -> None:
    """Among a tenant's requests and across tenants; equals keep their order and tenants take turns."""
    queue = Queue()
    names = [queue.add("a"), queue.add("a"), queue.add("b"), queue.add("a", 3), queue.add("b", 5)]
    assert [queue.turn() for _ in names] == ["5", "4", "3", "1", "2"]


def test_no_request_of_a_tenant_waits_for_ever() -> None:
    """However many urgent ones come after it, a request is overtaken a bounded number of times."""
    queue = Queue()
    patient = queue.add("a")
    assert turns_before(patient, queue, "a") < MAX_PRIORITY * OVERTAKEN_PER_LEVEL


def test_no_tenant_waits_for_ever() -> None:
    """However many urgent requests others send, every tenant has its turn before long."""
    queue = Queue()
    patient = queue.add("patient")
    assert turns_before(patient, queue, "b", "c", "d") <= MAX_PRIORITY + 3


def test_engine_answers_by_priority(gqa_model: Model, start: Start) -> None:
    """Of requests that wait for one place, the one with the highest priority is answered first."""
    harness = start(gqa_model, paused=True, max_sequences=1)
    begun: list[int] = []

    def note_begin(answer: Answer, priority: int) -> None:
        tell = answer.request.on_event

        def on_event(event: Event) -> None:
            if not answer.events:
                begun.append(priority)
            tell(event)

        answer.request.on_event = on_event

    answers = []
    for seed, priority in enumerate((0, 2, 9, 1)):
        answers.append(harness.request(gqa_model.case(4, seed=seed), priority=priority))
        note_begin(answers[-1], priority)
        harness.engine.submit(answers[-1].request)
    harness.engine.start()
    for answer in answers:
        answer.wait()
    assert begun == [9, 2, 1, 0]
