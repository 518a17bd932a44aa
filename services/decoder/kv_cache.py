"""Paged memory for keys and values: blocks shared by reference count, and kept for reuse until the room is needed."""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
import torch

from services.common.checkpoint import TextConfig


class OutOfBlocksError(Exception):
    """Every block is in use by a sequence."""


class BlockPool:
    """Hands out block ids. A block that carries a hash outlives its users, until it is the least recently used one."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._empty = deque(range(num_blocks))
        self._num_users = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        self._tenant_of: dict[int, str] = {}  # of hashed blocks
        self._idle: OrderedDict[int, None] = OrderedDict()  # hashed, no user; least recently used first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._empty) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - self.num_available

    def allocate(self) -> int:
        """Take a block with one user. Raises OutOfBlocksError."""
        if self._empty:
            block = self._empty.popleft()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            raise OutOfBlocksError
        self._num_users[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a user to a block that is in use or idle."""
        self._idle.pop(block, None)
        self._num_users[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Take one user off each block. The end of a chain is given up first: it is worth less than its start."""
        for block in reversed(blocks):
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                self._retire(block)

    def publish(self, block: int, block_hash: bytes, tenant: str = "") -> None:
        """Let a full block of a tenant be found by its hash; the first of equal blocks is the one that is found."""
        if block_hash not in self._by_hash and block not in self._hash_of:
            self._by_hash[block_hash] = block
            self._hash_of[block] = block_hash
            self._tenant_of[block] = tenant

    def find(self, block_hash: bytes) -> int | None:
        """The block that holds this content, if there is one."""
        return self._by_hash.get(block_hash)

    def is_used(self, block: int) -> bool:
        """Whether some sequence holds this block."""
        return self._num_users[block] > 0

    def withdraw(self, blocks: Sequence[int]) -> None:
        """Let blocks not be found any more: what they hold cannot be trusted."""
        for block in blocks:
            self._forget(block)

    def withdraw_all_of(self, tenant: str) -> list[int]:
        """Withdraw what a tenant has published: these blocks."""
        blocks = [block for block, owner in self._tenant_of.items() if owner == tenant]
        self.withdraw(blocks)
        return blocks

    def _retire(self, block: int) -> None:
        if block in self._hash_of:
            self._idle[block] = None
        else:
            self._empty.append(block)

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._by_hash[block_hash]
            del self._tenant_of[block]
        if block in self._idle:
            del self._idle[block]
            self._empty.append(block)


class KVCache:
    """The memory itself: `[layers, num_blocks + 1, block_size, 2, kv_heads, head_dim]`.

    A token's keys and values stand side by side, so that a block is gathered in one piece. The last block belongs to
    nobody and stays zero: it fills up short block tables, so that a masked row is never multiplied by what another
    sequence left behind (0 * NaN is NaN).
    """

    def __init__(
        self, config: TextConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads = (config.num_key_value_heads, config.head_dim)
        shape = (config.num_hidden_layers, num_blocks + 1, block_size, 2, *heads)
        self.memory = _zeros(shape, dtype, device)
        self._layers = self.memory.unbind()
        self.block_size = block_size
        self.padding_block = num_blocks

    def layer(self, index: int) -> torch.Tensor:
        """Keys and values of one layer `[num_blocks + 1, block_size, 2, kv_heads, head_dim]`."""
        return self._layers[index]

    def clear(self, blocks: Sequence[int]) -> None:
        """Overwrite blocks with zeros."""
        self.memory[:, list(blocks)] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros. On the CPU the system gives the pages out as they are written; torch.zeros would touch them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)
