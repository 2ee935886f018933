"""What the machine itself can do: the floor under every other figure, and what a target cannot ask for.

    python tests/benchmarks/limits.py --bytes 536000000 --out docs/benchmarks/limits.json

Each figure is the best of some rounds, in a process of its own where memory must be new. The load floor is what a
verified load into new memory cannot go below on two cores: clearing the pages, hashing them, reading what is stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from figures import MB, markdown_table
from machine import machine, package_versions

CHUNK = 4 << 20
_HERE = Path(__file__)


def seconds(work: Callable[[], object]) -> float:
    """How long something takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def touch_new_memory(size: int) -> float:
    """Writes a byte to every page of memory that nobody has used yet."""
    memory = mmap.mmap(-1, size)
    page = mmap.PAGESIZE

    def touch() -> None:
        memory[0:size:page] = bytes(len(range(0, size, page)))

    return seconds(touch)


def in_new_process(what: str, size: int) -> float:
    """A figure that only a process without a past can give."""
    done = subprocess.run(
        [sys.executable, str(_HERE), "--one", what, "--bytes", str(size)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def hash_all(size: int, threads: int) -> float:
    """SHA-256 of that many bytes, shared among threads."""
    chunk = os.urandom(CHUNK)
    shares = [size // threads // CHUNK] * threads

    def share(count: int) -> None:
        digest = hashlib.sha256()
        for _ in range(count):
            digest.update(chunk)

    with ThreadPoolExecutor(threads) as executor:
        return seconds(lambda: list(executor.map(share, shares)))


def read_warm(path: Path) -> float:
    """Reads a cached file into one small buffer."""
    room = memoryview(bytearray(CHUNK))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return seconds(lambda: [os.preadv(descriptor, [room], at) for at in range(0, size, CHUNK)])
    finally:
        os.close(descriptor)


def write(path: Path, size: int, *, durable: bool) -> float:
    """Writes a new file, with or without waiting for the disk."""
    chunk = os.urandom(CHUNK)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def work() -> None:
        for _ in range(0, size, CHUNK):
            os.write(descriptor, chunk)
        if durable:
            os.fsync(descriptor)

    try:
        return seconds(work)
    finally:
        os.close(descriptor)


def start(statement: str) -> float:
    """A whole process that runs one statement."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True))


def measure(size: int, rounds: int, folder: Path) -> dict[str, float]:
    """Seconds of each kind of work on that many bytes; the least of the rounds."""
    path = folder / "limits"
    kinds: dict[str, Callable[[], float]] = {
        "new memory, first touched": lambda: in_new_process("touch", size),
        "SHA-256, one thread": lambda: hash_all(size, 1),
        "SHA-256, two threads": lambda: hash_all(size, 2),
        "write to the page cache": lambda: write(path, size, durable=False),
        "write and fsync": lambda: write(path, size, durable=True),
        "read from the page cache": lambda: read_warm(path),
        "python starts": lambda: start("pass"),
        "import sqlalchemy, click": lambda: start("import sqlalchemy, click"),
    }
    found = {name: min(work() for _ in range(rounds)) for name, work in kinds.items()}
    path.unlink()
    cpu = found["new memory, first touched"] + found["SHA-256, one thread"] + found["read from the page cache"] * 0.68
    return {**found, "load floor: touch, hash and read what is stored, on two cores": cpu / 2}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, or gives one figure to whoever asked for a new process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bytes", type=int, default=536 * MB, metavar="N", help="how much of everything (536e6)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="the least of these (5)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the document; its page goes beside it")
    parser.add_argument("--one", choices=["touch"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(touch_new_memory(options.bytes))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = measure(options.bytes, options.rounds, Path(folder))
        where = machine(Path(folder))
    rows = [
        [name, f"{took:.3f}", "" if name.startswith(("python", "import")) else f"{options.bytes / took / 1e9:.2f}"]
        for name, took in found.items()
    ]
    table = markdown_table(["what", "seconds", "GB/s"], rows)
    print(table)
    if options.out is not None:
        versions = package_versions()
        document = {"machine": where, "versions": versions, "bytes": options.bytes, "seconds": found}
        options.out.write_text(json.dumps(document, indent=2) + "\n")
        title = (
            f"# Limits of the machine\n\nWritten by `tests/benchmarks/limits.py`, {options.bytes:,} bytes of each.\n\n"
        )
        options.out.with_suffix(".md").write_text(title + table + "\n")


if __name__ == "__main__":
    main()
