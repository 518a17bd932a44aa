"""The block pool: nothing is lost, nothing is given twice, what is cached goes when it is the oldest."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.decoder.kv_cache import BlockPool, KVCache, OutOfBlocksError
from tests.decoder.harness import Model

NUM_BLOCKS = 6


class PoolMachine(RuleBasedStateMachine):
    """Users take, share, publish and give back blocks in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: list[int] = []
        self.next_hash = 0

    @rule()
    def allocate(self) -> None:
        """A block that nobody holds, or an error when all are held."""
        if len(set(self.held)) == NUM_BLOCKS:
            with pytest.raises(OutOfBlocksError):
                self.pool.allocate()
        else:
            block = self.pool.allocate()
            assert block not in self.held
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """One user goes."""
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.free([block])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        """A held block can be found by its hash."""
        block = data.draw(st.sampled_from(self.held))
        self.next_hash += 1
        self.pool.publish(block, b"%d" % self.next_hash)

    @rule(number=st.integers(1, 40))
    def share(self, number: int) -> None:
        """Whatever is found can be held again."""
        block = self.pool.find(b"%d" % number)
        if block is not None:
            self.pool.share(block)
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """A block may stop being found at any time."""
        self.pool.withdraw([data.draw(st.sampled_from(self.held))])

    @invariant()
    def counts_agree(self) -> None:
        """Used and available blocks are all there are."""
        assert self.pool.num_used == len(set(self.held))
        assert self.pool.num_used + self.pool.num_available == NUM_BLOCKS


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_least_recently_used_goes_first() -> None:
    """When room is needed, of the idle blocks the one freed first is reused, the end of a chain before its start."""
    pool = BlockPool(3)
    chain = [pool.allocate(), pool.allocate()]
    other = pool.allocate()
    for block in (*chain, other):
        pool.publish(block, b"%d" % block)
    pool.free(chain)
    pool.free([other])
    assert [pool.allocate() for _ in range(3)] == [chain[1], chain[0], other]
    assert pool.find(b"0") is None


def resident_bytes() -> int:
    """Memory of this process that is really there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_taken_as_it_is_used(gqa_model: Model) -> None:
    """A large cache costs nothing before keys and values are written to it."""
    before = resident_bytes()
    cache = KVCache(gqa_model.checkpoint.text, 1 << 15, 16, torch.bfloat16, torch.device("cpu"))
    assert cache.memory.nbytes > 1 << 27
    assert not cache.layer(1)[-1].any()
    assert resident_bytes() - before < 1 << 25
