"""A process that has everything imported, and forks workers whose power is cut.

    python power_worker.py SOURCES

Each line on its standard input asks for one worker: a store and a seed. What workers say on standard output is one line
of JSON each: that they are ready, what has been acknowledged (:func:`power_story.account`), and at last what stopped
them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, Final

from checkpoint_files import write_checkpoint, write_tuned
from power_story import account

import rblstore
from rblstore.errors import RblError

SIZES: Final = (1 << 10, 2 << 10, 8 << 10, 8 << 10, 40 << 10, 200 << 10, 2 << 20)
MOST_STEPS: Final = 400


def write_sources(folder: Path) -> Path:
    """The checkpoints that are committed, by the names that they have in messages of commits."""
    for number, size in enumerate(SIZES * 2):
        write_checkpoint(folder / f"model{number}", size, number)
    for number in range(2):
        write_tuned(folder / f"tuned{number}", folder / "model4", number)
    return folder


def prepare(store: Path, sources: Path) -> None:
    """The repository that workers begin with; its settings give garbage no grace."""
    with rblstore.init(store) as repo:
        repo.commit("model4", identity=sources / "model4")
        repo.create_tag("first")
    (store / ".rbl" / "config.toml").write_text("[gc]\ngrace = 0\noperations = 0\n")


def say(**members: Any) -> None:
    """One line, in one write: neither lost in a buffer with the process nor torn."""
    os.write(1, json.dumps(members).encode() + b"\n")


def step(repo: Any, sources: Path, moment: random.Random, number: int) -> str:
    """Does one thing; returns what was committed as an identity, if that was what was done."""
    standing = [slot.name for slot in repo.status().slots]
    what = moment.choice(("identity",) * 6 + ("behavior", "revert", "revert", "tag", "undo", "branch", "repack", "gc"))
    if what == "behavior" and not standing:
        repo.commit("model4", identity=sources / "model4", allow_empty=True)
        say(**account(repo, "model4"))
        repo.commit("tuned", behaviors={"tuned": sources / f"tuned{moment.randrange(2)}"})
    elif what == "revert" and standing:
        repo.revert(behavior=standing[-1], verify=False)
    elif what == "tag":
        repo.create_tag(f"tag{number}", message="a record" * (number % 2))
    elif what == "undo":
        repo.create_tag(f"undone{number}")
        say(**account(repo))
        repo.undo()
    elif what == "branch":
        repo.switch(f"branch{number}", create=True)
    elif what == "repack":
        repo.repack(compression=moment.choice(("fast", "none")))
    elif what == "gc" and hasattr(repo, "gc"):
        repo.gc(apply=True)
    else:
        name = f"model{moment.randrange(2 * len(SIZES))}"
        repo.commit(name, identity=sources / name, remove=standing, allow_empty=True)
        return name
    return ""


def work(store: Path, sources: Path, seed: int) -> None:
    """Works until something fails, and says what that was."""
    moment = random.Random(seed)
    try:
        with rblstore.open(store) as repo:
            say(ready=True)
            for number in range(MOST_STEPS):
                source = step(repo, sources, moment, number)
                say(**account(repo, source))
        say(stopped="tired")
    except RblError as error:
        say(stopped=error.code)
    except BaseException:  # noqa: BLE001 - whatever it is, it is told to whoever asked
        say(stopped=None, error=traceback.format_exc())


def employ(store: Path, sources: Path, seed: int) -> None:
    """Forks a worker, and says when it has ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work(store, sources, seed)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    say(ended=True)


def serve(sources: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    quiet = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    prepare(folder / "store", sources)
    with rblstore.open(folder / "store") as repo:
        for number in range(60):  # what is imported inside functions is imported now
            step(repo, sources, random.Random(number), number)
    shutil.rmtree(folder)
    os.dup2(quiet, 1)
    say(serving=True)
    for line in sys.stdin:
        request = json.loads(line)
        employ(Path(request["store"]), sources, request["seed"])


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
