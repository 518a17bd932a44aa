"""What the C library does with memory that is freed."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h's numbers
_KEPT_BYTES = 64 << 20
_MAPPED_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Use memory again instead of giving it back, up to 64 MiB of it, whichever thread needs it.

    By default glibc returns what a message of 1 MiB took and has each page of the next one mapped anew, which costs
    more than moving its bytes. Blocks of 32 MiB and more still come from the kernel and go back to it.

    By default, too, each new thread gets an arena of its own, up to eight a processor. Of those, not even malloc_trim
    gives back the free memory at the top, so each that gRPC's threads come to use would keep its own 64 MiB. To be
    called before threads are started: an arena that is there stays.

    Other C libraries have no such settings.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_ARENA_MAX, 1)
