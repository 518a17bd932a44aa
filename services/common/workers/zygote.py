"""`python -m services.common.workers.zygote FD MODULE LIMITS`: imports once, then forks workers when told to.

A fork of a process that has imported everything takes two milliseconds where a start would take hundreds. Safe here:
this process has one thread, no grpc, and has never seen a stranger's byte. It ends with the service, whose end of the
socket closes, and its workers end with it.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from services.common.workers import confinement
from services.common.workers.child import run_worker


def main() -> None:
    """Serve forks until the other end closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    jobs = importlib.import_module(sys.argv[2])
    limits = confinement.Limits(**json.loads(sys.argv[3]))
    jobs.warm_up()
    gc.collect()
    gc.freeze()  # what is here stays: collections in the workers would copy its pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers; their sockets tell
    confinement.prefer_as_victim()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _work(descriptors[0], jobs, limits)
        os.close(descriptors[0])


def _work(descriptor: int, jobs: Any, limits: confinement.Limits) -> None:
    try:
        run_worker(socket.socket(fileno=descriptor), jobs.JOBS, limits)
    finally:
        os._exit(0)  # nothing of the zygote's may run at the end


if __name__ == "__main__":
    main()
