"""Where a process computes: in one thread, with the helpers that OpenMP gives to it.

Every thread that has computed something large keeps helpers. Once there are more of all together than processors,
OpenMP lets them sleep between operations instead of waiting awake, and waking them takes a sixth of a small model's
decode step.
"""

import ctypes

import torch

OMP_PAUSE_SOFT = 1  # OpenMP 5.0: give resources back, keep settings


def leave_computing_to_others() -> None:
    """From now on the calling thread computes alone; the helpers that it had end."""
    torch.set_num_threads(1)
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)  # missing before OpenMP 5.0
    if pause is not None:
        pause(OMP_PAUSE_SOFT)
