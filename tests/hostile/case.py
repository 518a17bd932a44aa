"""One hostile file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """`reason`: what it is refused with; None: it is answered like the picture or video that it shows.

    `only_gateway`: no encoder can be told of it, as the header of an Encode call refuses it first.
    """

    name: str
    data: bytes
    reason: str | None
    only_gateway: bool = False
