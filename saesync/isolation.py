"""Cutting a worker process off: no network, no look into the parent's memory, no life after it.

Each layer is taken where the system has it, and none needs a privilege: an empty network namespace, a seccomp filter that knows
no sockets but local ones (native code cannot get around either), an audit hook over Python's own sockets that says which
call it was, and a parent whose memory and environment other processes may not read. What is not covered stands in
docs/security.md. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_FILTER = 2  # SECCOMP_MODE_FILTER
_CAPABILITY_VERSION = 0x20080522
# What root keeps: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID (files), IPC_LOCK (pinned memory), SYS_NICE, SYS_RESOURCE.
# Gone are SYS_PTRACE, PERFMON and SYS_ADMIN, with each of which a process may read the memory of others.
_KEPT_CAPABILITIES = sum(1 << number for number in (0, 1, 2, 3, 4, 14, 23, 24))
# linux/audit.h's name of the architecture; numbers of socket, ptrace, process_vm_readv and process_vm_writev.
_CALLS = {"x86_64": (0xC000003E, 41, (101, 310, 311)), "aarch64": (0xC00000B7, 198, (117, 270, 271))}
_IO_URING_SETUP, _PIDFD_GETFD, _X32 = 425, 438, 0x40000000  # the same on both; io_uring can make sockets without socket()
_LOCAL = (1, 16)  # AF_UNIX (GPU drivers talk to their daemons through it) and AF_NETLINK
_LOAD, _EQUAL, _LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: ld [k], jeq, jge, ret
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
REFUSED = errno.ENETDOWN  # what making a socket fails with
_REFUSED_EVENTS = frozenset(
    {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
     "socket.gethostbyaddr", "socket.getnameinfo", "socket.listen"}
)  # fmt: skip


def isolate(parent: int) -> NetworkGuard:
    """Everything a worker does to itself, before any thread is started and anything foreign is opened."""
    die_with(parent)
    leave_network()
    drop_privileges()
    refuse_sockets()
    guard = NetworkGuard()
    sys.addaudithook(guard)
    return guard


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens (Linux; elsewhere stdin's end does)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def hide_memory() -> None:
    """Have the kernel show this process's environment and memory to no other process of the same user (Linux): a token in
    ``HF_TOKEN`` could be read from ``/proc`` otherwise. Debuggers and core dumps are shut out, too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_privileges() -> None:
    """Give up what ``root`` may do beyond reading and writing files, above all look into other processes in spite of
    ``hide_memory`` (Linux)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
        data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice 32 bits
        if libc.capget(header, data) == 0:
            low = [word & _KEPT_CAPABILITIES for word in struct.unpack("3I", data.raw[:12])]
            libc.capset(header, struct.pack("6I", *low, 0, 0, 0))


def leave_network() -> bool:
    """Move this process into an empty network namespace where the kernel allows it (Linux); says whether it did."""
    return sys.platform == "linux" and _unshare()


def _unshare() -> bool:
    uid, gid = os.getuid(), os.getgid()
    unshare = ctypes.CDLL(None).unshare
    if unshare(_CLONE_NEWNET) == 0:
        return True
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        pass  # only the names shown for our own ids suffer
    return True


def refuse_sockets() -> bool:
    """Have the kernel refuse sockets of all families that leave this machine, and reading other processes' memory; says
    whether it does. Works where namespaces are not allowed, as in most containers."""
    known = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if known is None:
        return False
    program = _program(*known)
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    prog = struct.pack("HP", len(program), ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None).prctl
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(prctl(_PR_SET_SECCOMP, _FILTER, prog, 0, 0) == 0)


def _program(architecture: int, make_socket: int, traces: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """The filter in classic BPF: (operation, lines to skip if true, if false, operand). ``seccomp_data`` holds the call's number
    at 0, the architecture at 4 and the first argument at 16."""
    denied, refused = _ERRNO | errno.EPERM, _ERRNO | REFUSED
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, denied), (_LOAD, 0, 0, 0)]
    lines += [(_LEAST, 0, 1, _X32), (_RETURN, 0, 0, denied)]  # the same calls under other numbers
    for number in (*traces, _PIDFD_GETFD):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, denied)]
    lines += [(_EQUAL, 0, 1, _IO_URING_SETUP), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    lines += [(_EQUAL, 1, 0, make_socket), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 16)]
    for family in _LOCAL:
        lines += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    return [*lines, (_RETURN, 0, 0, refused)]


class NetworkGuard:
    """An audit hook that refuses every socket operation that could leave the process, and remembers the last one."""

    def __init__(self) -> None:
        self.last: str | None = None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """The hook. Raises PermissionError for a refused event."""
        if event in _REFUSED_EVENTS:
            self.last = event
            raise PermissionError(f"{event}: worker processes have no network")

    def blamed(self, error: BaseException) -> str | None:
        """The network call that an error came of, if any."""
        if self.last is None and isinstance(error, OSError) and error.errno == REFUSED:
            return "socket"
        return self.last
