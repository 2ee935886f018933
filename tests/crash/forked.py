"""Talking to a :mod:`server`: commands in forked processes, traced to their end; workers, to be killed."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracing import Fault

import rblstore

ROOT = Path(rblstore.__file__).parents[1]
PATIENCE_SECONDS = 120.0


def environment() -> dict[str, str]:
    """What a process of ours is started with: this very rblstore, one thread a library."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "RBL_AUTHOR": "Ada"}


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        code: Its exit code, negative for a signal.
        calls: The system calls that were counted.
        fired: How many of them the fault happened to.
        out, err: What it said.
    """

    code: int
    calls: tuple[str, ...]
    fired: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed as JSON, whole; None where it did not."""
        try:
            return json.loads(self.out)
        except ValueError:
            return None


@dataclass(frozen=True)
class Killed:
    """A worker that was killed.

    Attributes:
        acknowledged: What it said it had done, as (kind, name), in order.
        seconds: From its start to its end.
        fired: Whether it died at the call that was asked for, if any was.
    """

    acknowledged: tuple[tuple[str, str], ...]
    seconds: float
    fired: bool


class Server:
    """One server process; a context manager.

    Attributes:
        traces: Why system calls cannot be traced here, or None where they can.
    """

    def __init__(self) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="rbl-server-")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._files.name,
            env=environment(),
        )
        assert self._process.stdout is not None
        self._descriptor = self._process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        self._buffer = b""
        self._heard: list[tuple[str, str]] = []
        self._start = 0.0
        self._worker: int | None = None
        ready = self._answer()
        assert ready["ready"], ready
        self.traces: str | None = ready["traces"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._selector.close()
        self._files.cleanup()

    def _ask(self, **request: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        self._process.stdin.flush()

    def _answers(self, seconds: float) -> bool:
        """Waits for a whole line, so long; returns whether there is one."""
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            remaining = until - time.monotonic()
            if not self._selector.select(max(0.0, remaining)):
                return False
            data = os.read(self._descriptor, 1 << 16)
            assert data, "the server has died"
            self._buffer += data
        return True

    def _answer(self) -> dict[str, Any]:
        assert self._answers(PATIENCE_SECONDS), "the server does not answer"
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def run(
        self,
        *arguments: str | Path,
        roots: Sequence[Path],
        fault: Fault | None = None,
        names: frozenset[str] = frozenset(),
        opens: bool = False,
        reads: bool = False,
        fresh: bool = False,
    ) -> Done:
        """Runs a command line in a process of its own and follows it to its end.

        Args:
            arguments: What follows ``rbl``.
            roots: Folders whose calls are counted.
            fault: What happens at one of these calls.
            names: Only calls of these names; empty for every one that changes something.
            opens: Whether opening a file for reading counts, too.
            reads: Whether reading counts, too.
            fresh: Whether to start an interpreter, as a user would, instead of forking.
        """
        self._ask(
            do="run",
            arguments=[str(argument) for argument in arguments],
            folder=self._files.name,
            roots=roots,
            fault=None if fault is None else asdict(fault),
            names=sorted(names),
            opens=opens,
            reads=reads,
            fresh=fresh,
        )
        answer = self._answer()
        out, err = (Path(self._files.name, name).read_text() for name in ("out", "err"))
        return Done(os.waitstatus_to_exitcode(answer["status"]), tuple(answer["calls"]), answer["fired"], out, err)

    def employ(self, mode: str, store: Path, folder: Path, tuned: Path, fault: Fault | None = None) -> None:
        """Has a worker begin to work.

        Args:
            mode: What it does; see :mod:`server`.
            store: The repository.
            folder: Where it puts files of its own.
            tuned: A fine-tune that it may commit.
            fault: Where to kill it, if at a system call.
        """
        at_call = None if fault is None else asdict(fault)
        self._heard = []
        self._start = time.monotonic()
        self._ask(do="employ", mode=mode, store=store, folder=folder, tuned=tuned, fault=at_call)
        self._worker = None
        while fault is None and self._worker is None:
            self._note(answer := self._answer())  # it may begin to speak before its number is known
            self._worker = answer.get("pid")

    def hear(self, answers: int = 0, seconds: float = 0.0) -> int:
        """Waits for so many things that a worker says, and then for so long; returns how much it said in all."""
        for _ in range(answers):
            self._note(self._answer())
        until = time.monotonic() + seconds
        while self._answers(until - time.monotonic()):
            self._note(self._answer())
        return len(self._heard)

    def dismiss(self) -> Killed:
        """Kills the worker, unless it is to die at a system call, and waits for its end."""
        if self._worker is not None:
            os.kill(self._worker, signal.SIGKILL)
        while "ended" not in (answer := self._answer()):
            self._note(answer)
        assert os.waitstatus_to_exitcode(answer["ended"]) == -signal.SIGKILL, answer
        return Killed(tuple(self._heard), time.monotonic() - self._start, bool(answer["fired"]))

    def _note(self, answer: dict[str, Any]) -> None:
        if "kind" in answer:
            self._heard.append((answer["kind"], answer["name"]))
