"""A filter of system calls (seccomp): what reading media needs, and nothing else.

A worker can take and give back memory, read and write what it holds open, and end. It cannot open a file, use the
network, start a process or look at another one; such a call fails with EPERM. x86-64 and AArch64 are known; elsewhere
a worker has the other limits alone.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: ld [k], jeq #k, ret #k
_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4  # in struct seccomp_data


@dataclass(frozen=True, slots=True)
class _Machine:
    """An architecture's audit number and the numbers of the calls that are allowed."""

    audit_arch: int
    calls: Sequence[int]


# each call's number on x86-64 and on AArch64; none of them takes a path, an address or another process
_CALLS: Final = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
}
_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, [numbers[0] for numbers in _CALLS.values()]),
    "aarch64": _Machine(0xC00000B7, [numbers[1] for numbers in _CALLS.values()]),
}


def allow_only_memory_and_replies() -> None:
    """From here on every other system call of this process fails. Needs no_new_privs. OSError if refused."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return
    program = _program(machine)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the system-call filter was refused")


def _program(machine: _Machine) -> bytes:
    """BPF: kill what calls in another architecture's way, allow what is listed, refuse the rest."""
    num_calls = len(machine.calls)
    steps = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_EQUAL, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        *((_JUMP_EQUAL, num_calls - place, 0, number) for place, number in enumerate(machine.calls)),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
