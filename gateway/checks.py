"""Collecting everything that is wrong with a request before answering."""

import math
from collections.abc import Sequence

from google.protobuf.message import Message

from services.common.errors import InvalidRequest, Violation


class Checks:
    """The violations found so far."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def add(self, field: str, description: str, reason: str = "OUT_OF_RANGE") -> None:
        """Note one violation."""
        self.violations.append(Violation(field=field, description=description, reason=reason))

    def require(self, condition: bool, field: str, description: str, reason: str = "OUT_OF_RANGE") -> bool:
        """Note a violation unless `condition` holds; returns whether it does."""
        if not condition:
            self.add(field, description, reason)
        return condition

    def finite(self, field: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
        """A number that is neither infinite nor NaN, within [least, most]."""
        bounds = (
            f"between {least:g} and {most:g}" if math.isfinite(least) and math.isfinite(most) else "a finite number"
        )
        self.require(math.isfinite(value) and least <= value <= most, field, f"must be {bounds}, not {value:g}")

    def excludes(self, path: str, message: Message, name: str, others: Sequence[str]) -> None:
        """`name`, where it is set, stands without any of `others`."""
        if message.HasField(name):
            for other in others:
                if message.HasField(other):
                    self.add(f"{path}.{other}", f"cannot be used together with {name}", "CANNOT_APPLY")

    def raise_any(self) -> None:
        """Raise InvalidRequest when anything was found."""
        if self.violations:
            raise InvalidRequest(self.violations)
