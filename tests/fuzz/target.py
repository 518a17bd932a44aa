"""What a fuzz target is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A parser: valid inputs to start from, how to run one, and the errors that it may raise.

    `share`: of all inputs, as fast parsers get more of them.
    """

    name: str
    seeds: Sequence[bytes]
    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    share: float = 1.0
