"""Processes that end with whoever started them, so that nothing is left behind by a parent that was killed."""

import sys
from collections.abc import Sequence

# Asks Linux for SIGTERM when the thread that started it ends (PR_SET_PDEATHSIG is 1), then becomes the command.
# Elsewhere there is no such call.
LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
os.execv(sys.argv[1], sys.argv[1:])
"""


def attached(command: Sequence[str]) -> list[str]:
    """`command`, whose first word is a path, tied to the calling thread; its process id stays the same."""
    return [sys.executable, "-c", LAUNCH, *command]
