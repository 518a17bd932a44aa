"""Mutations of bytes: what a fuzzer without coverage can do with good seeds."""

import random
from collections.abc import Callable, Sequence

MAX_BYTES = 1 << 16
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1)
WORDS = (b"<|im_start|>", b"<|image_pad|>", b"NaN", b"-1", b"%00", b"../", b"{{", b"://", b"\\", b"(", b"[", b"{9999}")
PIECES = (b"\0" * 8, b"\xff" * 8, b"\xed\xa0\x80", *WORDS)

Mutation = Callable[[random.Random, bytearray], None]


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds` with a few changes, some of them taken from another seed; sometimes noise alone."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randint(0, 256))
    data = bytearray(rng.choice(seeds))
    for _ in range(1 << rng.randint(0, 4)):
        rng.choice(MUTATIONS)(rng, data)
    if rng.random() < 0.1:
        _splice(rng, data, rng.choice(seeds))
    return bytes(data[:MAX_BYTES])


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _write_number(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((1, 2, 4, 8))
    place = rng.randint(0, len(data))
    value = rng.choice(INTERESTING) & ((1 << 8 * size) - 1)
    data[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _insert(rng: random.Random, data: bytearray) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.choice(PIECES) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 16))


def _remove(rng: random.Random, data: bytearray) -> None:
    place = rng.randint(0, len(data))
    del data[place : place + rng.randint(1, 64)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    place = rng.randint(0, len(data))
    piece = data[place : place + rng.randint(1, 64)]
    data[place:place] = piece * rng.randint(1, 8)


def _cut(rng: random.Random, data: bytearray) -> None:
    if rng.random() < 0.3:
        del data[rng.randint(0, len(data)) :]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randint(0, len(data)) :] = other[rng.randint(0, len(other)) :]


MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _set, _write_number, _insert, _remove, _repeat, _cut)
