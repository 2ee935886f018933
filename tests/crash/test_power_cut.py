"""Power cuts on real file systems (R3): what was acknowledged is there, and what was not is there whole or not at all.

A worker writes on a file system in a file (a loop device), which is shut down at some moment without flushing its
journal: all that it had not made durable is gone, as after a power cut, and the worker's next call fails. Then the file
system is mounted again. What ext4 and xfs make durable without having been asked, test_power_simulated.py takes away.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from forked import environment
from memory_folders import trial_folder
from power_checks import check_content, check_durable, check_opened, check_usable
from power_story import account
from power_worker import prepare, write_sources
from trials import FULL, Trials

import rblstore

SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, and XFS_IOC_GOINGDOWN
WITHOUT_JOURNAL = struct.pack("I", 2)
PATIENCE_SECONDS = 120.0
MAKE = {
    "ext4": ("96M", ["mkfs.ext4", "-q", "-F"]),
    "xfs": ("400M", ["mkfs.xfs", "-q", "-f"]),
}
OPTIONS = {
    "ext4": ("noauto_da_alloc", "data=ordered", "data=writeback", "data=journal", "nodelalloc", "nobarrier"),
    "xfs": ("defaults", "wsync", "swalloc"),
}


def run(*command: str | Path) -> str | None:
    """Runs a command; returns what it complained of, or None where it succeeded."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


class FileSystem:
    """A file system in a file, made once and copied for each cut.

    Args:
        kind: ``ext4`` or ``xfs``.
        folder: Where its file and the point where it is mounted lie.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        size, make = MAKE[kind]
        if os.geteuid() != 0:
            pytest.skip("only root may mount a file system")
        if shutil.which(make[0]) is None:
            pytest.skip(f"{make[0]} is not installed")
        self._kind = kind
        self._fresh, self._image, self.point = folder / "fresh", folder / "image", folder / "disk"
        self.point.mkdir()
        assert run("truncate", "-s", size, self._fresh) is None
        reason = run(*make, self._fresh)
        assert reason is None, reason
        self.renew()
        refusal = run("mount", "-t", kind, "-o", "loop", self._image, self.point)
        if refusal is not None:
            pytest.skip(f"no file system may be mounted here: {refusal}")
        self._unmount()

    @contextmanager
    def mounted(self, options: str = "defaults") -> Iterator[Path]:
        """Mounts it for a while; mounting replays its journal."""
        reason = run("mount", "-t", self._kind, "-o", f"loop,{options}", self._image, self.point)
        assert reason is None, reason
        try:
            yield self.point
        finally:
            self._unmount()

    def _unmount(self) -> None:
        reason = run("umount", self.point)
        if reason is not None:
            run("umount", "-l", self.point)
            pytest.fail(f"the file system is still in use: {reason}")

    def keep(self) -> None:
        """Has it begin each time as it is now."""
        shutil.move(self._image, self._fresh)

    def renew(self) -> None:
        """Has it as it was in the beginning."""
        assert run("cp", "--sparse=always", self._fresh, self._image) is None

    def cut(self) -> None:
        """Cuts its power; only what is durable outlives this."""
        descriptor = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUT_DOWN, WITHOUT_JOURNAL)
        finally:
            os.close(descriptor)


class Workers:
    """Workers, one after another, forked by one process (power_worker.py); a context manager."""

    def __init__(self, sources: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("power_worker.py")), str(sources)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert self._process.stdout is not None
        self._descriptor = self._process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        self._buffer = b""
        assert self.hear() == {"serving": True}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)
        self._process.stdout.close()
        self._selector.close()

    def employ(self, store: Path, seed: int) -> None:
        """Has a worker begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"store": str(store), "seed": seed}).encode() + b"\n")
        self._process.stdin.flush()
        assert self.hear() == {"ready": True}

    def hear(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any] | None:
        """The next thing that is said; None where nothing is for so long."""
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, until - time.monotonic())):
                return None
            data = os.read(self._descriptor, 1 << 16)
            assert data, "the process that forks workers has died"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def until_cut(self, disk: FileSystem, lead: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
        """Lets a worker say so many things, and work on for so long; then cuts the power.

        Returns:
            What it was acknowledged, also after that, and the code of the error that stopped it.
        """
        heard: list[dict[str, Any]] = []
        until = time.monotonic() + (PATIENCE_SECONDS if lead else seconds)
        cut = False
        while True:
            said = self.hear(max(0.0, until - time.monotonic()))
            if said is None or (not cut and "stopped" in said):
                assert not cut, "a worker does not notice that its file system is gone"
                assert said is None, said
                disk.cut()
                cut, until = True, time.monotonic() + PATIENCE_SECONDS
            elif "stopped" in said:
                assert said["stopped"] is not None, said["error"]
                assert self.hear() == {"ended": True}
                return heard, said["stopped"]
            else:
                heard.append(said)
                if not cut and len(heard) == lead:
                    until = time.monotonic() + seconds


def check(store: Path, sources: Path, room: Path, known: dict[str, Any], number: int) -> bool:
    """Checks what is left of a repository; returns whether what was not acknowledged is there, too."""
    check_durable(store, known)
    found = check_opened(store, known, None, guess=True)
    with rblstore.open(store) as repo:
        whole = [entry.commit for entry in repo.log(all=True) if (sources / entry.message).is_dir()]
    check_content(store, sources, str(whole[number % len(whole)]), room)
    check_usable(store, room, number)
    return found != known["operation"]


@pytest.fixture
def room() -> Iterator[Path]:
    with trial_folder() as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quick", "full"), [("ext4", 50, 2000), ("xfs", 10, 500)])
def test_acknowledged_work_outlives_a_power_cut(kind: str, quick: int, full: int, room: Path) -> None:
    disk = FileSystem(kind, room)
    sources = write_sources(room / "sources")
    with disk.mounted() as point:
        prepare(point / "store", sources)
        with rblstore.open(point / "store") as repo:
            start = account(repo)
    disk.keep()
    with Trials("R3", f"power cuts on {kind}", quick=quick, full=full) as run, Workers(sources) as workers:
        for number in run:
            options = OPTIONS[kind][number % len(OPTIONS[kind])] if FULL else OPTIONS[kind][0]
            disk.renew()
            with disk.mounted(options) as point:
                workers.employ(point / "store", run.moment.randrange(1 << 30))
                lead = run.moment.choice((0, 0, 1, 2, 4, 8))
                heard, code = workers.until_cut(disk, lead, run.moment.uniform(0.0, 0.15))
            with disk.mounted(options) as point:
                more = check(point / "store", sources, room, heard[-1] if heard else start, run.moment.randrange(1000))
            run.count("acknowledged", len(heard))
            run.count("not acknowledged and there", more)
            run.count(code)
