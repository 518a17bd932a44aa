"""What service and worker say to each other.

One packet is one message: JSON of plain values, never pickle, since whoever has taken over a worker must not be able to
run code in the service by what it answers. Descriptors go from the service to the worker only, apart from the worker's
handle on itself, which it sends before it has read a byte of a stranger's.
"""

import json
import socket
from typing import Any

MAX_PACKET_BYTES = 64 << 10
HEAD_BYTES = 64  # of a job's output, before its bulk data: `allowance.STAMP` and room for it to be aligned
READY, TAKEN = b"ready", b"taken"  # a worker's first words, before and after it gets its job


def pack(message: dict[str, Any]) -> bytes:
    """A message as a packet."""
    return json.dumps(message, separators=(",", ":")).encode()


def unpack(packet: bytes) -> dict[str, Any]:
    """A packet as a message. ValueError when it is none."""
    try:
        message = json.loads(packet)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep packets apart; both close on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
