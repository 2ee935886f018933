"""A process that has everything imported and forks others on request: to be killed, traced, or made to fail.

    python server.py

Requests come as lines of JSON on its standard input, answers leave as lines of JSON on its standard output;
:mod:`forked` talks to it. It has one thread and no open repository, so what it forks is what a fresh process would be,
but for the half second that the imports take.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from checkpoint_files import BYTES, write_checkpoint, write_tuned
from tracing import Fault, Watch, traced, unavailable

import rblstore

TALK = os.dup(1)  # a child's own standard output goes elsewhere


def say(**members: Any) -> None:
    """One answer, in one write: neither lost in a buffer with the process nor torn."""
    os.write(TALK, json.dumps(members).encode() + b"\n")


# -- commands -------------------------------------------------------------------------------------------------------


def command(arguments: list[str], folder: Path, *, fresh: bool) -> Callable[[], int]:
    """A command line, run in a child; what it says goes to the files ``out`` and ``err`` in a folder."""

    def work() -> int:
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "rblstore", *arguments])
        return in_this_process(arguments)

    return work


def in_this_process(arguments: list[str]) -> int:
    """Runs a command line as ``python -m rblstore`` would, and returns its exit code."""
    sys.argv = ["rblstore", *arguments]
    try:
        runpy.run_module("rblstore", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001, as the interpreter does
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(request: dict[str, Any]) -> None:
    watch = Watch(tuple(request["roots"]), frozenset(request["names"]), opens=request["opens"], reads=request["reads"])
    fault = None if request["fault"] is None else Fault(**request["fault"])
    work = command(request["arguments"], Path(request["folder"]), fresh=request["fresh"])
    done = traced(work, watch, fault)
    say(calls=done.calls, status=done.status, fired=done.fired)


# -- workers --------------------------------------------------------------------------------------------------------


def commits(repo: Any, folder: Path, size: int) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        seed = os.getpid() * 1000 + number
        source = write_checkpoint(folder / f"{seed}", size, seed)
        say(written=f"{seed}")
        yield "commit", repo.commit(f"commit {seed}", identity=source).commit


def reverts(repo: Any, tuned: Path) -> Iterator[tuple[str, str]]:
    for slot in repo.log(limit=1)[0].slots:  # whoever came before was killed between the two
        yield "commit", repo.revert(behavior=slot.name, verify=False, message=f"revert {slot.name}").commit
    for number in itertools.count():
        name = f"tune{os.getpid()}-{number}"
        yield "commit", repo.commit(f"add {name}", behaviors={name: tuned}).commit
        yield "commit", repo.revert(behavior=name, verify=False, message=f"revert {name}").commit


def tags(repo: Any) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        yield "tag", repo.create_tag(f"t{os.getpid()}-{number}").name


def branches(repo: Any) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        yield "branch", repo.create_branch(f"b{os.getpid()}-{number}").name


def undos(repo: Any) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        yield "commit", repo.commit(f"empty {os.getpid()}-{number}", allow_empty=True).commit
        yield "operation", repo.undo().operation


def checkouts(repo: Any, folder: Path) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        target = folder / f"out{number}"
        repo.checkout("HEAD", target)
        yield "checkout", target.name


def repacks(repo: Any) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        repo.repack(compression=("fast", "none")[number % 2])
        yield "repack", str(number)


def collections(repo: Any) -> Iterator[tuple[str, str]]:
    """Makes garbage and collects it: the settings give it no grace."""
    for number in itertools.count():
        name = f"g{os.getpid()}-{number}"
        yield "branch", repo.create_branch(name).name
        yield "commit", repo.commit(f"empty {name}", branch=name, allow_empty=True).commit
        yield "delete", repo.delete_branch(name).name
        repo.gc(apply=True, grace_days=0)
        yield "gc", str(number)


def repairs(store: Path, tuned: Path) -> Iterator[tuple[str, str]]:
    """Damages a pack, and repairs it from what it was made of."""
    moment = random.Random(os.getpid())
    sources = [path for path in tuned.parent.iterdir() if path.name != "store"]
    for number in itertools.count():
        pack = moment.choice(sorted(path for path in store.glob(".rbl/packs/*/*") if path.read_bytes()[8:9] == b"C"))
        pack.chmod(0o644)
        with pack.open("r+b") as stream:
            stream.seek(100)
            byte = stream.read(1)[0]
            stream.seek(100)
            stream.write(bytes((byte ^ 1,)))
        pack.chmod(0o444)
        rblstore.repair(store, sources=sources, apply=True)
        yield "repair", str(number)


def indexes(store: Path) -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        rblstore.reindex(store)
        yield "reindex", str(number)


def labour(mode: str, store: Path, folder: Path, tuned: Path) -> Iterator[tuple[str, str]]:
    """What a worker does in its mode, step by step; each step is done before it is said."""
    if mode == "reindex":
        yield from indexes(store)
    if mode == "repair":
        yield from repairs(store, tuned)
    with rblstore.open(store) as repo:
        if mode in BYTES:
            yield from commits(repo, folder, BYTES[mode])
        elif mode == "revert":
            yield from reverts(repo, tuned)
        elif mode == "checkout":
            yield from checkouts(repo, folder)
        else:
            chosen = {"tag": tags, "branch": branches, "undo": undos, "repack": repacks, "gc": collections}[mode]
            yield from chosen(repo)


def worker(request: dict[str, Any]) -> Callable[[], int]:
    """Work without end, for whoever kills it; each thing that was acknowledged is said at once."""

    def work() -> int:
        try:
            for kind, name in labour(request["mode"], *(Path(request[name]) for name in ("store", "folder", "tuned"))):
                say(kind=kind, name=str(name))
        except BaseException:  # noqa: BLE001, whoever listens fails with it
            say(error=traceback.format_exc())
        return 1

    return work


def employ(request: dict[str, Any]) -> None:
    """Forks a worker, and says when it has ended."""
    work = worker(request)
    if request["fault"] is not None:
        done = traced(work, Watch((request["store"], request["folder"])), Fault(**request["fault"]))
        say(ended=done.status, fired=done.fired)
        return
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    say(pid=pid)
    say(ended=os.waitpid(pid, 0)[1], fired=0)


# -- the server -----------------------------------------------------------------------------------------------------


def import_everything() -> None:
    """Runs a little of everything once: what is imported inside functions is imported now."""
    folder = Path(tempfile.mkdtemp())
    try:
        base = write_checkpoint(folder / "base", 40 << 10, 1)
        write_tuned(folder / "tuned", base, 2)
        with rblstore.init(folder / "store") as repo:
            repo.commit("base", identity=base, compression="none")
            repo.commit("tuned", behaviors={"tuned": folder / "tuned"})
            repo.revert(behavior="tuned", verify=False)
            repo.undo()
            repo.create_tag("tag")
            repo.create_branch("branch")
            repo.checkout("HEAD", folder / "out")
            repo.repack(compression="fast")
            repo.fsck(full=True)
            repo.gc(apply=True, grace_days=0)
        nothing = os.open(os.devnull, os.O_WRONLY)
        said = os.dup(2)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        for arguments in (
            ["log", "--json"],
            ["switch", "branch"],
            ["reindex"],
            ["gc", "--restore"],
            ["repair", "--apply"],
            ["show", "nothing"],
        ):
            in_this_process(["-C", str(folder / "store"), *arguments])
        os.dup2(said, 2)
    finally:
        shutil.rmtree(folder)


def serve() -> None:
    import_everything()
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        say(ready=False, reason="the server has threads, and what it forks would not")
        return
    say(ready=True, traces=unavailable())
    for line in sys.stdin.buffer:
        request = json.loads(line)
        (run if request["do"] == "run" else employ)(request)


if __name__ == "__main__":
    serve()
