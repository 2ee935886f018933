"""Processes and threads that all work on one repository, and say what each was acknowledged.

    python many_writers.py STORE FOLDER PROCESSES OPERATIONS READERS GC SEED

PROCESSES are forked from one that has everything imported. Each has two threads, with one open repository between them
or one for each, which do OPERATIONS altogether: commits on a branch of their own and on two that all share, tags,
branches, undos, reverts, switches, checkouts, checks, repacks and collections. READERS processes look and check out
until the writers are done, and with GC one does nothing but collect and repack. Each leaves FOLDER/NAME.json.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_checkpoints as tiny

import rblstore
from rblstore.catalog.engine import CatalogBusyError
from rblstore.errors import ConflictError, LockedError, NotFoundError, NothingChangedError

SHARED, CONTESTED = "shared", "contested"
ADAPTERS = 6
THREADS = 2


def sources(folder: Path) -> dict[str, Path]:
    """The checkpoint and the adapters that everybody commits."""
    made = {"base": tiny.write_base(folder / "base")}
    for number in range(ADAPTERS):
        made[f"a{number}"] = tiny.write_adapter(folder / f"a{number}", seed=number + 1)
    return made


class Worker:
    """One thread.

    Args:
        name: Its name, author and branch.
        repo: Its repository, or that of another thread, too.
        folder: For its checkouts.
        sources: What to commit.
        seed: Of what it chooses.
    """

    def __init__(self, name: str, repo: Any, folder: Path, sources: dict[str, Path], seed: str) -> None:
        self.name = name
        self.repo = repo
        self.folder = folder
        self.sources = sources
        self.random = random.Random(f"{seed} {name}")
        self.number = 0
        self.history: list[dict[str, Any]] = []
        self.slots: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.acknowledged: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.problem: str | None = None
        self.digests = {key: tiny.digests(path) for key, path in sources.items()}

    def run(self, operations: int) -> None:
        verbs = {
            self.commit_own: 8,
            self.commit_shared: 5,
            self.commit_contested: 4,
            self.undo_own: 2,
            self.undo_contested: 2,
            self.tag: 3,
            self.tag_contested: 2,
            self.delete_tag: 1,
            self.branch: 1,
            self.switch: 2,
            self.switch_create: 1,
            self.revert: 2,
            self.checkout: 4,
            self.look: 3,
            self.fsck: 1,
            self.repack: 1,
            self.collect: 1,
        }
        try:
            self.commit_own()
            for verb in self.random.choices(list(verbs), list(verbs.values()), k=operations - 1):
                self.number += 1
                verb()
        except BaseException:  # noqa: BLE001
            self.problem = traceback.format_exc()

    # -- one each -----------------------------------------------------------------------------------------------

    def attempt(self, verb: Callable[[], Any], *losing: type[BaseException]) -> Any:
        """What an operation returns; None where it lost a race, in a way that it may."""
        try:
            return verb()
        except CatalogBusyError:
            raise  # the catalog is fair: nobody waits for it so long
        except (*losing, LockedError) as error:
            self.counts[f"lost to {error.code}"] += 1
            return None

    def acknowledge(self, what: str, description: str, branch: str | None = None, **more: Any) -> None:
        self.counts[what] += 1
        self.acknowledged.append(
            {"author": self.name, "what": what, "description": description, "branch": branch, **more}
        )

    @property
    def word(self) -> str:
        """One that nobody else uses, and this thread only now."""
        return f"{self.name}-{self.number}"

    def commit_own(self) -> None:
        slots = dict(self.slots[-1]) if self.slots else {}
        changes: dict[str, Any] = {}
        if not self.history:
            changes["identity"] = self.sources["base"]
        else:
            slot, adapter = self.random.choice("xyz"), f"a{self.random.randrange(ADAPTERS)}"
            if slot in slots and self.random.random() < 0.3:
                del slots[slot]
                changes["remove"] = [slot]
            else:
                slots[slot] = adapter
                changes["behaviors"] = {slot: self.sources[adapter]}
        made = self.attempt(
            lambda: self.repo.commit(self.word, branch=self.name, author=self.name, allow_empty=True, **changes)
        )
        if made is None:
            return
        assert list(made.parents) == [one["commit"] for one in self.history[-1:]], "somebody else was on this branch"
        self.history.append({"commit": made.commit, "word": self.word})
        self.slots.append(slots)
        self.acknowledge("commit", f"commit: {self.word}", self.name, commit=made.commit)

    def commit_on(self, branch: str) -> None:
        slot, adapter = self.random.choice("xyz"), f"a{self.random.randrange(ADAPTERS)}"
        made = self.attempt(
            lambda: self.repo.commit(
                self.word, branch=branch, author=self.name, allow_empty=True, behaviors={slot: self.sources[adapter]}
            ),
            ConflictError,
        )
        if made is not None:
            self.acknowledge("commit", f"commit: {self.word}", branch, commit=made.commit, parent=made.parents[0])

    def commit_shared(self) -> None:
        self.commit_on(SHARED)

    def commit_contested(self) -> None:
        self.commit_on(CONTESTED)

    def undo_operation(self, description: str, *losing: type[BaseException]) -> Any:
        operations = [
            one for one in self.repo.operations() if one.author == self.name and one.description == description
        ]
        assert len(operations) == 1, f"{len(operations)} operations are called {description}"
        undone = self.attempt(lambda: self.repo.undo(operations[0].id, author=self.name), *losing)
        if undone is not None:
            assert undone.undone == operations[0].id
            self.acknowledge("undo", f"undo: {description}", id=undone.operation)
        return undone

    def undo_own(self) -> None:
        if len(self.history) < 2:
            self.commit_own()
        elif self.undo_operation(f"commit: {self.history[-1]['word']}") is not None:
            self.history.pop()
            self.slots.pop()

    def undo_contested(self) -> None:
        mine = [one for one in self.acknowledged if one["branch"] == CONTESTED and one["what"] == "commit"]
        if mine:
            self.undo_operation(mine[-1]["description"], ConflictError)
        else:
            self.commit_contested()

    def tag(self) -> None:
        if self.attempt(lambda: self.repo.create_tag(self.word, self.name, author=self.name)) is not None:
            self.tags.append(self.word)
            self.acknowledge("tag", f"tag: {self.word}")

    def tag_contested(self) -> None:
        name = f"v{self.random.randrange(20)}"
        made = self.attempt(
            lambda: self.repo.create_tag(name, self.name, message=self.word, author=self.name), ConflictError
        )
        if made is not None:
            self.acknowledge("contested tag", f"tag: {name}", tag=name)

    def delete_tag(self) -> None:
        if not self.tags:
            self.tag()
        elif self.attempt(lambda: self.repo.delete_tag(self.tags[-1], author=self.name)) is not None:
            self.acknowledge("tag deleted", f"tag: delete {self.tags.pop()}")

    def branch(self) -> None:
        if self.attempt(lambda: self.repo.create_branch(self.word, self.name, author=self.name)) is not None:
            self.acknowledge("branch", f"branch: {self.word}")

    def switch(self) -> None:
        # Where HEAD is there already there is no operation, so what is acknowledged is not known.
        if self.attempt(
            lambda: self.repo.switch(self.random.choice((SHARED, CONTESTED)), author=f"{self.name} switches"),
            ConflictError,
        ):
            self.counts["switch"] += 1

    def switch_create(self) -> None:
        made = self.attempt(
            lambda: self.repo.switch(self.word, create=True, start=self.name, author=self.name), ConflictError
        )
        if made is not None:
            self.acknowledge("new branch", f"switch: {self.word}")

    def revert(self) -> None:
        made = self.attempt(
            lambda: self.repo.revert(behavior="x", verify=False, message=self.word, author=self.name),
            ConflictError,
            NotFoundError,
            NothingChangedError,
        )
        if made is not None:
            word = f"revert: {self.word}"
            self.acknowledge("revert", word, made.branch, commit=made.commit, parent=made.parents[0])

    def expected(self, at: int) -> dict[str, str]:
        """Digests of a checkout of a commit of the thread's own branch."""
        found = dict(self.digests["base"])
        for slot, adapter in self.slots[at].items():
            found.update({f"behaviors/{slot}/{path}": digest for path, digest in self.digests[adapter].items()})
        return found

    def checkout(self) -> None:
        at = self.random.randrange(len(self.history))
        target = self.folder / self.word
        self.repo.checkout(self.history[at]["commit"], target)
        assert tiny.checked_out(target) == self.expected(at), f"{self.history[at]} is not what was committed"
        shutil.rmtree(target)
        self.counts["checkout"] += 1

    def look(self) -> None:
        log = self.repo.log(self.name)
        assert [one.commit for one in log] == [one["commit"] for one in reversed(self.history)]
        self.repo.log(all=True)
        self.repo.status()
        self.repo.branches()
        self.counts["look"] += 1

    def fsck(self) -> None:
        damages = self.repo.fsck().damages
        assert damages == (), f"fsck: {damages}"
        self.counts["fsck"] += 1

    def repack(self) -> None:
        policy = self.random.choice(("fast", "none", "max"))
        if self.attempt(lambda: self.repo.repack(compression=policy)) is not None:
            self.counts["repack"] += 1

    def collect(self) -> None:
        if self.attempt(lambda: collect(self.repo)) is not None:
            self.counts["gc"] += 1

    def report(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "problem": self.problem,
            "acknowledged": self.acknowledged,
            "counts": dict(self.counts),
            "history": [one["commit"] for one in self.history],
            "digests": self.expected(len(self.slots) - 1) if self.slots else {},
        }


def collect(repo: Any) -> Any:
    """Takes at once whatever nothing refers to."""
    return repo.gc(apply=True, grace_days=0)


def write(process: int, store: Path, folder: Path, made: dict[str, Path], operations: int, seed: str) -> Any:
    """One process of writers; in every other one the threads share what is open."""
    names = [f"w{process}{'ab'[thread]}" for thread in range(THREADS)]
    repos = [rblstore.open(store)] * THREADS if process % 2 else [rblstore.open(store) for _ in names]
    workers = [Worker(name, repo, folder, made, seed) for name, repo in zip(names, repos, strict=True)]
    sys.setswitchinterval(1e-4)  # what two threads can do to each other, they do soon
    threads = [threading.Thread(target=worker.run, args=(operations // THREADS,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for repo in repos:
        repo.close()
    return [worker.report() for worker in workers]


def until_done(folder: Path, name: str, step: Callable[[int], None]) -> Any:
    """Takes steps until the writers are done, at least one."""
    steps, problem = 0, None
    try:
        while True:
            step(steps)
            steps += 1
            if (folder / "done").exists():
                break
    except BaseException:  # noqa: BLE001
        problem = traceback.format_exc()
    return [{"name": name, "problem": problem, "counts": {f"steps of {name.rstrip('0123456789')}": steps}}]


def read(reader: int, store: Path, folder: Path) -> Any:
    """One process that reads: with a repository that stays open, and with one opened each time."""
    name = f"reader{reader}"
    kept = rblstore.open(store)

    def step(number: int) -> None:
        repo = kept if number % 2 else rblstore.open(store)
        target = folder / f"{name}-{number}"
        head = repo.log(SHARED)[0].commit
        repo.checkout(head, target)
        assert repo.status(target).clean, "a checkout is not what was checked out"
        assert repo.log(SHARED)[-1].message == "root"
        repo.log(all=True)
        repo.operations(20)
        if number % 5 == 0:
            damages = repo.fsck().damages
            assert damages == (), damages
        shutil.rmtree(target)
        if repo is not kept:
            repo.close()

    return until_done(folder, name, step)


def keep_collecting(store: Path, folder: Path, seed: str) -> Any:
    """One process that collects and repacks, over and over."""
    repo = rblstore.open(store)
    choose = random.Random(f"{seed} gc")

    def step(number: int) -> None:
        try:
            if choose.random() < 0.3:
                repo.repack(compression=choose.choice(("fast", "none")))
            else:
                collect(repo)
        except CatalogBusyError:
            raise
        except LockedError:
            pass

    return until_done(folder, "collector", step)


def forked(folder: Path, name: str, work: Callable[[], Any]) -> int:
    """A child that does its work and leaves a report."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        report = work()
        (folder / f"{name}.part").write_text(json.dumps(report))
        (folder / f"{name}.part").rename(folder / f"{name}.json")
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    os._exit(status)


def main(store: Path, folder: Path, processes: int, operations: int, readers: int, collecting: bool, seed: str) -> int:
    made = sources(folder / "sources")
    with rblstore.init(store, branch=SHARED) as repo:
        configuration = store / ".rbl" / "config.toml"
        configuration.write_text(configuration.read_text().replace("operations = 90 ", "operations = 0 "))
        repo.commit("root", identity=made["base"], author="root")
        repo.create_branch(CONTESTED, author="root")
        # What is imported late is imported here, once for all.
        repo.checkout("HEAD", folder / "warm")
        repo.fsck()
        repo.repack()
    writers = [
        forked(folder, f"writer{number}", lambda n=number: write(n, store, folder, made, operations // processes, seed))
        for number in range(processes)
    ]
    others = [forked(folder, f"reader{number}", lambda n=number: read(n, store, folder)) for number in range(readers)]
    if collecting:
        others.append(forked(folder, "collector", lambda: keep_collecting(store, folder, seed)))
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in writers)
    (folder / "done").touch()
    return failed + sum(os.waitpid(child, 0)[1] != 0 for child in others)


if __name__ == "__main__":
    at, folder, processes, operations, readers, collecting, seed = sys.argv[1:]
    sys.exit(main(Path(at), Path(folder), int(processes), int(operations), int(readers), collecting == "1", seed))
