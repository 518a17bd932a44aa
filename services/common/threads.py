"""Where a process computes: in one thread, with the helpers that OpenMP gives to it.

Every thread that has computed something large keeps helpers. Once there are more of all together than processors,
OpenMP lets them sleep between operations instead of waiting awake, and waking them takes a quarter of a small model's
decode step.
"""

import ctypes
import threading

import torch

OMP_PAUSE_SOFT = 1  # OpenMP 5.0: give resources back, keep settings


def leave_computing_to_others() -> None:
    """From now on the calling thread computes alone; the helpers that it had end."""
    torch.set_num_threads(1)
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)  # missing before OpenMP 5.0
    if pause is not None:
        pause(OMP_PAUSE_SOFT)


def compute_here(num_threads: int) -> None:
    """The calling thread computes with so many from now on, itself counted. Threads that begin later compute alone.

    Without that, a thread that converts a picture's embeddings once would keep helpers for as long as it lives.
    """
    torch.set_num_threads(num_threads)
    torch.get_num_threads()  # what is set last, by any thread, is taken over at a thread's first question or operation
    later = threading.Thread(target=torch.set_num_threads, args=(1,))
    later.start()
    later.join()
