"""What a process that decodes strangers' bytes gives up beforehand: files, network, other processes, endless memory.

`confine` is called once, in a process of one thread that has loaded all it needs. Afterwards it can compute, ask for
memory within a bound, read the files and answer on the sockets that it was handed, and end; the kernel refuses all
else with EPERM (seccomp, Linux's Documentation/userspace-api/seccomp_filter.rst).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from struct import pack

ALLOWED = {  # system calls by what they are for, and their numbers in the kernel's asm/unistd.h
    "x86_64": {"read": 0, "pread64": 17, "lseek": 8, "fstat": 5, "newfstatat": 262, "close": 3}
    | {"recvfrom": 45, "recvmsg": 47, "sendto": 44, "sendmsg": 46}
    | {"mmap": 9, "munmap": 11, "mremap": 25, "brk": 12, "madvise": 28, "futex": 202}
    | {"clock_gettime": 228, "getrandom": 318, "rt_sigreturn": 15, "exit": 60, "exit_group": 231},
    "aarch64": {"read": 63, "pread64": 67, "lseek": 62, "fstat": 80, "newfstatat": 79, "close": 57}
    | {"recvfrom": 207, "recvmsg": 212, "sendto": 206, "sendmsg": 211}
    | {"mmap": 222, "munmap": 215, "mremap": 216, "brk": 214, "madvise": 233, "futex": 98}
    | {"clock_gettime": 113, "getrandom": 278, "rt_sigreturn": 139, "exit": 93, "exit_group": 94},
}
THREADS = {  # what those need who cannot do without threads of their own
    "x86_64": {"mprotect": 10, "rt_sigprocmask": 14, "sched_yield": 24, "gettid": 186, "sched_getaffinity": 204}
    | {"set_robust_list": 273, "rseq": 334},
    "aarch64": {"mprotect": 226, "rt_sigprocmask": 135, "sched_yield": 124, "gettid": 178, "sched_getaffinity": 123}
    | {"set_robust_list": 99, "rseq": 293},
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435  # its flags lie in memory, where no filter can look; without it the C library takes `clone`
CLONE_THREAD = 0x10000  # linux/sched.h
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
MOST_FILES = 16  # descriptors

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38  # linux/prctl.h
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF instructions: linux/bpf_common.h
NUMBER_AT, ARCHITECTURE_AT, FLAGS_AT = 0, 4, 16  # in struct seccomp_data; flags are the first argument's lower half
RETURN_ALLOW, RETURN_EPERM, RETURN_ENOSYS, RETURN_KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def is_possible() -> bool:
    """Does this kind of machine have what `confine` asks for?"""
    return platform.system() == "Linux" and platform.machine() in ALLOWED


def confine(memory: int, parent: int, threads: bool = False) -> None:
    """Give everything up; `memory` is how many bytes may still be taken. With `parent`, its process id, this one ends.

    With `threads` it may still start threads, but no processes.

    Raises:
        OSError: the kernel does not do it.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the kernel was told to watch it
    with suppress(OSError):  # where memory runs out after all, the kernel ends this process, and not the service
        Path("/proc/self/oom_score_adj").write_text("1000")
    most_memory = _address_space() + memory
    for what, most in (
        (resource.RLIMIT_AS, most_memory),
        (resource.RLIMIT_NOFILE, MOST_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),  # a dump would hold somebody's photo
    ):
        resource.setrlimit(what, (most, most))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Program.of(_filter(platform.machine(), threads))))


class _Program(ctypes.Structure):
    """linux/filter.h's struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    @classmethod
    def of(cls, instructions: bytes) -> _Program:
        return cls(len(instructions) // 8, instructions)


def _filter(machine: str, threads: bool) -> bytes:
    """Whose machine code is not of this machine is killed, as it may count its calls otherwise; what is allowed is."""
    return b"".join(
        [
            _instruction(LOAD, ARCHITECTURE_AT),
            _instruction(JUMP_IF_EQUAL, AUDIT_ARCH[machine], if_true=1),
            _instruction(RETURN, RETURN_KILL),
            _instruction(LOAD, NUMBER_AT),
            *_allow(ALLOWED[machine].values()),
            *(_allow_threads(machine) if threads else ()),
            _instruction(RETURN, RETURN_EPERM),
        ]
    )


def _allow(numbers: Iterable[int]) -> list[bytes]:
    return [_instruction(JUMP_IF_EQUAL, number, if_false=1) + _instruction(RETURN, RETURN_ALLOW) for number in numbers]


def _allow_threads(machine: str) -> list[bytes]:
    return [
        *_allow(THREADS[machine].values()),
        _instruction(JUMP_IF_EQUAL, CLONE3, if_false=1),
        _instruction(RETURN, RETURN_ENOSYS),
        _instruction(JUMP_IF_EQUAL, CLONE[machine], if_false=3),
        _instruction(LOAD, FLAGS_AT),
        _instruction(JUMP_IF_SET, CLONE_THREAD, if_false=1),
        _instruction(RETURN, RETURN_ALLOW),
    ]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return pack("=HBBI", code, if_true, if_false, value)


def _prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    if libc.prctl(option, *[ctypes.c_ulong(one) if isinstance(one, int) else one for one in padded]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _address_space() -> int:
    """Of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
