"""What file system a path is on, by the kernel's list of mounts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_MOST_BYTES: Final = 4 << 20
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")

NETWORK: Final = frozenset(
    """
    9p acfs afs beegfs ceph cifs coda drvfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs prl_fs pvfs2
    smb2 smb3 smbfs vboxsf virtiofs vmhgfs wekafs
    """.split()  # noqa: SIM905 - a list would take a screen
)
"""Types whose locks or fsync another machine answers for; so do most of FUSE's."""
LOCAL_FUSE: Final = frozenset({"fuse.bindfs", "fuse.fuse-overlayfs", "fuse.mergerfs"})
MEMORY: Final = frozenset({"ramfs", "tmpfs"})
PLAIN: Final = frozenset({"exfat", "fuseblk", "hfsplus", "msdos", "ntfs", "ntfs3", "vfat"})
"""Types made for other systems: without owners and modes, or that take two names for one."""


@dataclass(frozen=True)
class FileSystem:
    """One mounted file system.

    Attributes:
        type: As the kernel calls it: ``ext4``, ``nfs4``, ``fuse.sshfs``.
        source: The device, or what stands for it.
        mounted: Where.
        read_only: Whether it is mounted so.
    """

    type: str
    source: str
    mounted: str
    read_only: bool

    @property
    def is_network(self) -> bool:
        """Whether another machine, or a program, answers for what is stored."""
        return self.type in NETWORK or (self.type.startswith("fuse.") and self.type not in LOCAL_FUSE)


def file_system_of(path: Path) -> FileSystem | None:
    """The file system that a path, or the nearest folder above it that exists, is on; None where nothing says so."""
    try:
        with _MOUNTS.open("rb") as stream:
            text = os.fsdecode(stream.read(_MOST_BYTES))
    except OSError:
        return None
    return find_mount(text, os.path.realpath(path))


def find_mount(mountinfo: str, path: str) -> FileSystem | None:
    """The mount that a path is on, of the lines of ``/proc/self/mountinfo`` (proc(5)).

    Args:
        mountinfo: The lines. Of two mounts in one place the later one counts.
        path: Absolute, without links.
    """
    best: FileSystem | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 2:
            continue
        mounted = _plain(left[4])
        inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
        if inside and (best is None or len(mounted) >= len(best.mounted)):
            options = {*left[5].split(","), *(right[2].split(",") if len(right) > 2 else ())}
            best = FileSystem(right[0], _plain(right[1]), mounted, "ro" in options)
    return best


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found.group(1), 8)), text)


def network_warning(path: Path) -> str | None:
    """What to say to whoever keeps a repository at a path that is on a network file system; None where it is not."""
    found = file_system_of(path)
    if found is None or not found.is_network:
        return None
    return (
        f"{path} is on {found.type}, a network file system: its locks and fsync may promise more than they keep; "
        "rbl doctor says what it found"
    )
