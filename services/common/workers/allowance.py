"""How much CPU time a job may take for what it does next, so that a runaway ends soon and a long video does not."""

import os
import signal
import struct
from time import monotonic, process_time
from typing import Final

STAMP: Final = struct.Struct("dd")  # when a job was last given time, by the monotonic clock, and how much, in seconds
_LEAST_S: Final = 1e-4  # to set a timer to 0 would be to switch it off


class Allowance:
    """None is needed: for readers outside of a worker."""

    def earn(self, worth_s: float) -> None:
        """The next step is worth so much CPU time. What earlier ones have left over is kept up to the slack."""


UNLIMITED: Final = Allowance()


class TimedAllowance(Allowance):
    """Ends this process when a step takes longer than it is worth and the slack together: by SIGPROF, or at its end.

    A job of many steps may take `total_s` at most. `board` is a file that the service reads: it says how much time
    there was, as the kernel tells a worker's signal to nobody but its zygote.
    """

    def __init__(self, board: int, *, slack_s: float, total_s: float) -> None:
        self._board, self._slack_s, self._total_s = board, slack_s, total_s
        self._until_s = process_time() + slack_s
        self.earn(0.0)

    def earn(self, worth_s: float) -> None:
        now_s = process_time()
        if now_s > self._until_s:
            os._exit(1)  # a timer that is set again within a tick of the kernel's clock may never have fired
        self._until_s = min(self._until_s + worth_s, now_s + self._slack_s + worth_s, self._total_s)
        left_s = max(self._until_s - now_s, _LEAST_S)
        os.pwrite(self._board, STAMP.pack(monotonic(), left_s), 0)
        signal.setitimer(signal.ITIMER_PROF, left_s)


def is_used_up(board: int) -> bool:
    """Whether a worker that has just ended can have used its time; ticks of the kernel's clock may round it up."""
    given, allowed_s = STAMP.unpack(os.pread(board, STAMP.size, 0))
    return bool(0 < 0.9 * allowed_s <= monotonic() - given)
