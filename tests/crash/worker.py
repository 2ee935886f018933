"""A process to be killed: works on a repository in a loop and says on stdout what it has been acknowledged.

    python worker.py MODE STORE FOLDER

MODE is ``small`` (commits of a few kilobytes), ``large`` (commits of 30 MB), ``checkout`` (of the last commit) or
``repack`` (there and back). Each line is one acknowledgement, written straight to the pipe, so that it cannot be lost
in a buffer with the process.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from checkpoint_files import BYTES, write_checkpoint

import rblstore


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def work(mode: str, store: Path, folder: Path) -> None:
    with rblstore.open(store) as repo:
        say("ready")
        for number in itertools.count():
            if mode == "checkout":
                target = folder / f"out{number}"
                repo.checkout("HEAD", target)
                say(target.name)
            elif mode == "repack":
                repo.repack(compression=("fast", "none")[number % 2])
                say(f"{number}")
            else:
                seed = os.getpid() * 1000 + number
                source = write_checkpoint(folder / f"{seed}", BYTES[mode], seed)
                say("written")
                say(repo.commit(f"commit {seed}", identity=source).commit)


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
