"""Stopping a process at its system calls: to list them, to kill it at one, to make one fail or fall short.

What ``strace -e inject=`` does, for a process that may be forked and not started, across all of its threads, and
counting only the calls that touch given folders. A filter (seccomp, ``SECCOMP_RET_TRACE``) stops the process before
each call that changes something, or may; whoever traces it (ptrace) reads the registers, and lets the call be, replaces
it by an error, or kills the process there. SQLite's calls are seen like anybody's. test_system_calls.py compares what
is seen with strace.

Linux on x86-64 only: :func:`unavailable` says why not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# name: (number, where its file is: D a descriptor, P a path, A a directory's descriptor and a path below it)
CALLS: Final[dict[str, tuple[int, str]]] = {
    "read": (0, "D"),
    "write": (1, "D"),
    "open": (2, "P"),
    "pread64": (17, "D"),
    "pwrite64": (18, "D"),
    "writev": (20, "D"),
    "sendfile": (40, "D"),
    "fsync": (74, "D"),
    "fdatasync": (75, "D"),
    "truncate": (76, "P"),
    "ftruncate": (77, "D"),
    "rename": (82, "PP"),
    "mkdir": (83, "P"),
    "rmdir": (84, "P"),
    "creat": (85, "P"),
    "link": (86, "PP"),
    "unlink": (87, "P"),
    "symlink": (88, ".P"),
    "chmod": (90, "P"),
    "fchmod": (91, "D"),
    "mknod": (133, "P"),
    "openat": (257, "A"),
    "mkdirat": (258, "A"),
    "unlinkat": (263, "A"),
    "renameat": (264, "AA"),
    "linkat": (265, "AA"),
    "symlinkat": (266, ".A"),
    "fchmodat": (268, "A"),
    "utimensat": (280, "A"),
    "fallocate": (285, "D"),
    "preadv": (295, "D"),
    "pwritev": (296, "D"),
    "renameat2": (316, "AA"),
    "copy_file_range": (326, "..D"),
    "preadv2": (327, "D"),
    "pwritev2": (328, "D"),
    "openat2": (437, "A"),
}
READS: Final = frozenset({"read", "pread64", "preadv", "preadv2"})
DATA: Final = frozenset({"write", "pwrite64"})
_FLAGS: Final = {"open": 1, "openat": 2}
_NAMES: Final = {number: name for name, (number, _) in CALLS.items()}

_SEIZE, _CONT, _GETREGS, _SETREGS, _LISTEN = 0x4206, 7, 12, 13, 0x4208
_OPTIONS: Final = 0x100000 | 0x80 | 0x10 | 0x8 | 0x4 | 0x2  # EXITKILL, SECCOMP, EXEC, CLONE, VFORK, FORK
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL: Final = 0x40000000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_AT_FDCWD: Final = -100
_STOPPING: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


# In the order of struct user_regs_struct.
_REGISTERS: Final = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax",
    "rip cs eflags rsp ss fs_base gs_base ds es fs gs",
)


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in " ".join(_REGISTERS).split()]

    def argument(self, number: int) -> int:
        return int(getattr(self, ("rdi", "rsi", "rdx", "r10", "r8", "r9")[number]))


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


@dataclass(frozen=True)
class Fault:
    """What happens at one of the calls that are counted.

    Attributes:
        at: Which, from 1.
        action: ``kill`` (before the call), ``error`` (instead of it), ``short`` (it is asked for half of its bytes),
            or ``tear`` (the same, and killed before the next call).
        code: The error's number.
        lasting: Whether it happens at every call from then on.
        delay: For ``kill``: seconds to let it go on for, from the beginning of the call.
    """

    at: int
    action: str = "kill"
    code: int = errno.EIO
    lasting: bool = False
    delay: float | None = None


@dataclass(frozen=True)
class Watch:
    """Which calls are counted.

    Attributes:
        roots: Those on files under these folders, which need not exist.
        names: Those of these names; empty for every call that changes something.
        opens: Whether opening a file for reading counts.
        reads: Whether reading counts.
    """

    roots: tuple[str, ...]
    names: frozenset[str] = frozenset()
    opens: bool = False
    reads: bool = False


@dataclass
class Trace:
    """What a process did.

    Attributes:
        calls: ``name path`` of each call that was counted, the path relative to its root.
        status: As waitpid gives it.
        fired: How many calls the fault happened to.
    """

    calls: list[str] = field(default_factory=list)
    status: int = -1
    fired: int = 0


def _ptrace(request: int, thread: int, data: Any = None) -> None:
    if _libc.ptrace(request, thread, None, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def install_filter() -> None:
    """Has the calls of this process, which has one thread, stop for whoever traces it. Children inherit it."""
    numbers = sorted(number for number, _ in CALLS.values())
    count = len(numbers)
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, _ALLOW), (0x20, 0, 0, 0)]
    program += [(0x15, count - at, 0, number) for at, number in enumerate(numbers)]
    program += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _TRACE)]
    instructions = (_Instruction * len(program))(*(_Instruction(*one) for one in program))
    filled = _Program(len(program), instructions)
    none = ctypes.c_ulong(0)
    if _libc.prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), none, none, none) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    if _libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(filled), none, none) != 0:
        raise OSError(ctypes.get_errno(), "a seccomp filter was refused")


def traced(work: Callable[[], int], watch: Watch, fault: Fault | None = None) -> Trace:
    """Forks a process that does some work, and follows it to its end. For a process with one thread and no child.

    Args:
        work: Done in the child, which then exits with what it returns, unless it replaces itself (``os.exec*``).
        watch: What to count.
        fault: What to do, if anything.
    """
    going, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(go)
            os.read(going, 1)
            os.close(going)
            install_filter()
            code = work()
        finally:
            os._exit(code)
    os.close(going)
    try:
        _ptrace(_SEIZE, pid, _OPTIONS)
        os.write(go, b"g")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(go)
    return _Follower(pid, watch, fault).follow()


class _Follower:
    def __init__(self, pid: int, watch: Watch, fault: Fault | None) -> None:
        self._pid = pid
        self._watch = watch
        self._fault = fault
        self._roots = tuple(os.path.realpath(root) for root in watch.roots)
        self._trace = Trace()
        self._dead = False

    def follow(self) -> Trace:
        while True:
            thread, status = os.waitpid(-1, _WALL)
            if os.WIFSTOPPED(status):
                try:
                    self._stopped(thread, status)
                except OSError as error:
                    if error.errno not in (errno.ESRCH, errno.ENOENT):  # it was killed meanwhile
                        os.kill(self._pid, signal.SIGKILL)
                        raise
            elif thread == self._pid:
                self._trace.status = status
                return self._trace

    def _stopped(self, thread: int, status: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            if not self._dead:
                self._called(thread)
        elif event == _EVENT_STOP and number in _STOPPING:
            _ptrace(_LISTEN, thread)
            return
        if not self._dead:
            _ptrace(_CONT, thread, 0 if event else number)

    def _called(self, thread: int) -> None:
        registers = _Registers()
        _ptrace(_GETREGS, thread, ctypes.addressof(registers))
        name = _NAMES[registers.orig_rax & 0xFFFFFFFF]
        path = self._path(thread, name, registers)
        if path is None:
            return
        self._trace.calls.append(f"{name} {path}")
        fault, number = self._fault, len(self._trace.calls)
        if fault is None or number < fault.at:
            return
        torn = fault.action == "tear" and number == fault.at + 1
        if number > fault.at and not fault.lasting and not torn:
            return
        self._trace.fired += 1
        # Which call is how-manieth depends a little on the pace of threads: only what carries bytes can be cut short.
        whole = fault.action in ("short", "tear") and name not in DATA
        if fault.action == "kill" or torn or (whole and fault.action == "tear"):
            self._kill(thread, fault)
            return
        if whole:
            return
        if fault.action == "error":
            registers.orig_rax = ctypes.c_ulonglong(-1).value
            registers.rax = ctypes.c_ulonglong(-fault.code).value
        else:
            registers.rdx = max(1, registers.rdx // 2)
        _ptrace(_SETREGS, thread, ctypes.addressof(registers))

    def _kill(self, thread: int, fault: Fault) -> None:
        if fault.delay is not None:
            _ptrace(_CONT, thread, 0)
            until = time.monotonic() + fault.delay
            while time.monotonic() < until:
                pass
        os.kill(self._pid, signal.SIGKILL)
        self._dead = True

    def _path(self, thread: int, name: str, registers: _Registers) -> str | None:
        """The first of a call's files that lies under a root; None for a call that does not count."""
        watch = self._watch
        if watch.names and name not in watch.names:
            return None
        if name in READS and not watch.reads:
            return None
        if name in _FLAGS and not watch.opens and not watch.names:
            flags = registers.argument(_FLAGS[name])
            if flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC) == 0:
                return None
        at = 0
        for kind in CALLS[name][1]:
            found = None
            if kind == "D":
                found = self._descriptor(thread, registers.argument(at))
            elif kind == "P":
                found = self._text(thread, _AT_FDCWD, registers.argument(at))
            elif kind == "A":
                found = self._text(thread, registers.argument(at), registers.argument(at + 1))
                at += 1
            at += 1
            for root in self._roots:
                if found is not None and (found == root or found.startswith(root + "/")):
                    return os.path.relpath(found, Path(root).parent)
        return None

    @staticmethod
    def _descriptor(thread: int, number: int) -> str | None:
        try:
            return str(Path(f"/proc/{thread}/fd/{ctypes.c_int(number).value}").readlink()).removesuffix(" (deleted)")
        except FileNotFoundError:
            return None

    def _text(self, thread: int, folder: int, address: int) -> str | None:
        memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
        try:
            text = os.fsdecode(os.pread(memory, 4096, address).partition(b"\0")[0])
        except OSError:
            return None
        finally:
            os.close(memory)
        folder = ctypes.c_int(folder).value
        if not text.startswith("/"):
            above = (
                str(Path(f"/proc/{thread}/cwd").readlink()) if folder == _AT_FDCWD else self._descriptor(thread, folder)
            )
            text = f"{above}/{text}"
        head, _, tail = text.rpartition("/")
        return os.path.normpath(f"{os.path.realpath(head or '/')}/{tail}")


def unavailable() -> str | None:
    """Why nothing can be traced here; None where it can. For a process with one thread."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"system calls are traced on Linux and x86-64 only, not on {sys.platform} {platform.machine()}"

    def work() -> int:
        descriptor = os.open("/dev/null", os.O_WRONLY)
        try:
            os.write(descriptor, b"x")
        except BlockingIOError:
            return 42
        return 43

    try:
        done = traced(work, Watch(("/dev/null",)), Fault(2, "error", errno.EAGAIN))
    except OSError as error:
        return f"processes cannot be traced here: {error}"
    code = os.waitstatus_to_exitcode(done.status)
    return None if code == 42 else f"tracing does not work here (exit code {code}, calls {done.calls})"
