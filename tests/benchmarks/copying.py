"""Ways to get bytes that are stored as they are from a pack into a file, every byte hashed, and to size the file first.

    python tests/benchmarks/copying.py --folder /where/packs/lie --mib 512 --rounds 9

Figures are CPU seconds of the process (user and system), because other work on the machine leaves them alone; every
round measures each way once, in another order. The source starts at an odd offset, as frames do in packs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import MIB

FRAME = 8 * MIB
# Where the first frame begins in a pack, and where a tensor might begin in a file: neither on a block of 4,096 bytes.
SOURCE_START, TARGET_START = 16, 32_008

Way = Callable[[int, int, int], None]


def preallocate(target: int, size: int) -> None:
    """Asks the file system for the blocks first."""
    os.posix_fallocate(target, 0, TARGET_START + size)


def truncate(target: int, size: int) -> None:
    """Says only how large the file will be."""
    os.ftruncate(target, TARGET_START + size)


def nothing(target: int, size: int) -> None:
    """Lets the file grow."""


def write(source: int, target: int, size: int) -> None:
    """Reads into memory, hashes, and writes what was hashed."""
    room, digest = memoryview(bytearray(FRAME)), hashlib.sha256()
    for start in range(0, size, FRAME):
        os.preadv(source, [room], SOURCE_START + start)
        digest.update(room)
        os.pwrite(target, room, TARGET_START + start)


def copy(source: int, target: int, size: int) -> None:
    """Reads into memory, hashes, and lets the kernel copy the same range once more."""
    room, digest = memoryview(bytearray(FRAME)), hashlib.sha256()
    for start in range(0, size, FRAME):
        os.preadv(source, [room], SOURCE_START + start)
        digest.update(room)
        done = 0
        while done < FRAME:
            done += os.copy_file_range(
                source, target, FRAME - done, SOURCE_START + start + done, TARGET_START + start + done
            )


WAYS: dict[str, tuple[Callable[[int, int], None], Way]] = {
    "ftruncate, preadv, pwrite": (truncate, write),
    "ftruncate, preadv, copy_file_range": (truncate, copy),
    "posix_fallocate, preadv, pwrite": (preallocate, write),
    "preadv, pwrite": (nothing, write),
}


def measure(name: str, source: Path, folder: Path, size: int, *, sync: bool) -> tuple[float, float]:
    """CPU and wall seconds of one way; the disk has caught up before, and the file is removed afterwards."""
    prepare, way = WAYS[name]
    os.sync()
    target = folder / "target"
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    into = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    from_ = os.open(source, os.O_RDONLY)
    prepare(into, size)
    way(from_, into, size)
    if sync:
        os.fsync(into)
    os.close(from_)
    os.close(into)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    target.unlink()
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work; twice the size")
    parser.add_argument("--mib", type=int, default=512, metavar="N", help="how much is copied")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument(
        "--sync", action="store_true", help="until the file is on the disk, which a checkout leaves out"
    )
    options = parser.parse_args(arguments)
    size = max(1, options.mib * MIB // FRAME) * FRAME
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="rbl-copying-", dir=options.folder) as name:
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as stream:
            stream.write(bytes(SOURCE_START))
            for _ in range(size // FRAME):
                stream.write(os.urandom(FRAME))
        names = list(WAYS)
        for number in range(options.rounds + 1):
            for way in names[number % len(names) :] + names[: number % len(names)]:
                taken = measure(way, source, folder, size, sync=options.sync)
                if number:  # the first round warms up
                    found[way].append(taken)
    print(f"{'way':36} {'CPU median':>10} {'CPU least':>10} {'wall median':>11} {'wall least':>10}")
    for name, taken_all in found.items():
        cpu, wall = [one[0] for one in taken_all], [one[1] for one in taken_all]
        middle = statistics.median(cpu), statistics.median(wall)
        print(f"{name:36} {middle[0]:10.3f} {min(cpu):10.3f} {middle[1]:11.3f} {min(wall):10.3f}")


if __name__ == "__main__":
    main()
