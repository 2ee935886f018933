"""What ``doctor`` asks the system about a repository's folder: file system, locks, permissions, space and clock."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rblstore.errors import RblError
from rblstore.operations.doctor_findings import Finding
from rblstore.operations.file_systems import MEMORY, PLAIN, file_system_of
from rblstore.storage.durable import file_system_time

_LOCKS: Final = Path("/proc/locks")
_MOST_BYTES: Final = 4 << 20
_LOW_BYTES: Final = 256 << 20
_LOW_FILES: Final = 1000
_DRIFT_SECONDS: Final = 2.0
_WRITABLE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def system_findings(folder: Path) -> Iterator[Finding]:
    """What the system says about an ``.rbl`` folder.

    Args:
        folder: It; it exists.
    """
    yield from _file_system(folder)
    yield _flock(folder)
    yield from _case(folder)
    yield from _permissions(folder)
    yield from _space(folder)
    yield from _locks(folder)
    yield from _clock(folder)


def _file_system(folder: Path) -> Iterator[Finding]:
    found = file_system_of(folder)
    if found is None:
        yield Finding("file_system", "note", "the kernel does not say what file system this is")
        return
    what = f"{found.type} on {found.source}, mounted at {found.mounted}"
    if found.is_network:
        hint = (
            "Its locks and fsync may promise more than they keep: keep the repository on a local disk, and copies here."
        )
        yield Finding("file_system", "warning", f"{what}: a network file system", hint)
    elif found.type in MEMORY:
        yield Finding("file_system", "warning", f"{what}: memory, gone when the machine stops", "Move it to a disk.")
    elif found.type in PLAIN:
        hint = "Others may be able to write to it, and names that differ in case are one."
        yield Finding("file_system", "warning", f"{what}: made for another system", hint)
    else:
        yield Finding("file_system", "ok", what)
    if found.read_only:
        yield Finding("file_system", "note", "it is mounted read-only: nothing can be committed here")


def _flock(folder: Path) -> Finding:
    """Whether one lock keeps another out: asked of the format file, which nobody locks, or of the folder itself."""
    path = folder / "format" if os.path.isfile(folder / "format") else folder  # noqa: PTH113
    try:
        first = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            second = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                os.close(second)
        finally:
            os.close(first)
    except BlockingIOError:
        return Finding("flock", "ok", "flock keeps others out")
    except OSError as error:
        return Finding(
            "flock", "problem", f"flock does not work here: {error.strerror}", "Move the repository to a local disk."
        )
    return Finding("flock", "problem", "flock keeps nobody out here", "Move the repository to a local disk.")


def _case(folder: Path) -> Iterator[Finding]:
    try:
        same = (folder / "FORMAT").samefile(folder / "format")
    except OSError:
        return
    if same:
        what = "names that differ in case are one file here"
        yield Finding("case", "note", what, "Files of a checkpoint that differ in case cannot be checked out here.")


def _permissions(folder: Path) -> Iterator[Finding]:
    found = False
    mine = os.geteuid()
    for path in (
        folder,
        *(folder / name for name in ("format", "config.toml", "catalog.db", "refs.log", "packs", "tmp")),
    ):
        try:
            status = path.lstat()
        except OSError:
            continue  # what is missing is found elsewhere
        if status.st_uid not in (mine, 0):
            found = True
            hint = f"If you trust it: --allow-foreign. To own it: chown -R {mine} {folder}"
            yield Finding("owner", "warning", f"{path} belongs to another user (uid {status.st_uid})", hint)
        if stat.S_ISLNK(status.st_mode):
            found = True
            hint = "Put what it leads to in its place: a repository is one folder, on one file system."
            hint = "Give the repository's own path." if path == folder else hint
            yield Finding("permissions", "note", f"{path} is a symbolic link", hint)
            continue
        if status.st_mode & stat.S_IWOTH:
            found = True
            yield Finding("permissions", "warning", f"everybody may write to {path}", f"chmod o-w {path}")
        elif status.st_mode & stat.S_IWGRP:
            found = True
            what = f"the group {status.st_gid} may write to {path}"
            yield Finding("permissions", "note", what, f"Unless that is meant: chmod g-w {path}")
        if not os.access(path, os.W_OK) and path.name != "format":
            found = True
            what = f"{path} cannot be written: nothing can be committed"
            yield Finding("permissions", "warning", what, "Check its owner and mode.")
    writable = [path for path, status in packs(folder) if status.st_mode & _WRITABLE]
    if writable:
        found = True
        what = f"{len(writable)} of the packs can be written, the first of them {writable[0].name}"
        yield Finding("permissions", "warning", what, f"find {folder}/packs -name '*.pack' -exec chmod 0444 {{}} +")
    if not found:
        yield Finding("permissions", "ok", "owners and modes are as they should be")


def packs(folder: Path, room: str = "packs") -> list[tuple[Path, os.stat_result]]:
    """Every pack's file in a room, links aside; nothing where they cannot be listed."""
    try:
        shards = [shard for shard in (folder / room).iterdir() if not shard.is_symlink() and shard.is_dir()]
        found = [(path, path.lstat()) for shard in shards for path in shard.glob("*.pack")]
    except OSError:
        return []
    return [(path, status) for path, status in found if stat.S_ISREG(status.st_mode)]


def _space(folder: Path) -> Iterator[Finding]:
    try:
        status = os.statvfs(folder)
        largest = max((status.st_size for _, status in packs(folder)), default=0)
    except OSError as error:
        yield Finding("space", "note", f"the system does not say what is free: {error.strerror}")
        return
    free = status.f_bavail * status.f_frsize
    what = f"{free:,} bytes are free; the largest pack has {largest:,}"
    if free < max(largest, _LOW_BYTES):
        hint = "Free some space: rbl gc, rbl repack. Repacking needs room for a pack beside the old ones."
        yield Finding("space", "warning", what, hint)
    else:
        yield Finding("space", "ok", what)
    if status.f_files and status.f_favail < _LOW_FILES:
        what = f"{status.f_favail} more files can be made (inodes)"
        yield Finding("inodes", "warning", what, "Remove files that nobody needs from this file system.")


def _locks(folder: Path) -> Iterator[Finding]:
    holders = [
        (path, *holder)
        for path in (folder / "lock", folder / "lock.gate", folder / "refs.log", folder / "catalog.db")
        for holder in _holders(path)
    ]
    for path, exclusive, pid in holders:
        kind = "alone" if exclusive else "with others"
        yield Finding("locks", "note", f"{path.name} is held {kind} by {_process(pid)}")
    if not holders:
        yield Finding("locks", "ok", "nobody holds a lock that /proc/locks shows")


def _holders(path: Path) -> list[tuple[bool, int]]:
    """(alone, process id) of each lock of a file, as far as the kernel shows them."""
    try:
        status = path.stat()
        with _LOCKS.open("rb") as stream:
            text = stream.read(_MOST_BYTES).decode("ascii", "replace")
    except OSError:
        return []
    named = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = set()
    for line in text.splitlines():
        parts = line.split()
        # "1: FLOCK ADVISORY WRITE 123 fe:00:456 0 EOF"; one that waits has an arrow before its kind.
        if len(parts) >= 6 and parts[5] == named and parts[4].lstrip("-").isdigit():
            found.add((parts[3] == "WRITE", int(parts[4])))
    return sorted(found)


def _process(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}" if pid > 0 else "a process that cannot be seen from here"
    return f"process {pid} ({name})"


def _clock(folder: Path) -> Iterator[Finding]:
    if not os.access(folder / "tmp", os.W_OK):
        return
    try:
        before = time.time()
        there = file_system_time(folder / "tmp")
        after = time.time()
    except RblError as error:
        yield Finding("clock", "problem", f"no file can be made in {folder / 'tmp'}: {error.message}", error.hint)
        return
    drift = there - after if there > after else min(0.0, there - before)
    if abs(drift) > _DRIFT_SECONDS:
        what = (
            f"the file system's clock is {abs(drift):.0f} seconds {'ahead of' if drift > 0 else 'behind'} the system's"
        )
        yield Finding("clock", "warning", what, "Set the clocks right: rbl gc measures its time of grace by them.")
    else:
        yield Finding("clock", "ok", "the file system's clock agrees with the system's")
