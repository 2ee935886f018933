"""A repository with a short history, the commands that are cut short in it, and what must hold after each.

What must hold, wherever a command was killed or made to fail (:meth:`Story.check`): the repository opens; it is in
the state before the command or in the one after, never in a third, and in the one after where the command said so;
everything in it is whole (``fsck --full``, which compares ``refs.log`` with the catalog), and comes out as it went in;
the same command, and another one, work; and what lies about after that can be collected.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_files import digests, write_checkpoint, write_tuned
from forked import Done, Server
from tracing import Fault

import rblstore
from rblstore.errors import NoRepositoryError

SIZE = 40 << 10
NOT_THERE = "no repository"

# By name: what follows `rbl -C STORE`; {made} and {folder} are folders.
COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("init", "{folder}/store"),
    "commit": ("commit", "-m", "next", "--remove", "more", "--identity", "{made}/next"),
    "commit a behavior": ("commit", "-m", "tuned", "--behavior", "tuned={made}/tuned"),
    "revert": ("revert", "--behavior", "more", "--no-verify", "-m", "reverted"),
    "undo": ("undo", "{last}"),
    "tag": ("tag", "v1", "-m", "one"),
    "branch": ("branch", "topic"),
    "switch": ("switch", "main"),
    "checkout": ("checkout", "base", "{folder}/out"),
    "repack": ("repack", "--compression", "fast"),
    "reindex": ("reindex",),
    "gc": ("gc", "--apply", "--grace", "0"),
    "restore": ("gc", "--restore"),
    "repair": ("repair", "--from", "{made}/ft", "--from", "{made}/base", "--from", "{made}/more", "--apply"),
}
# These change how things are stored, and nothing that is told of them.
UNTOLD = ("repack", "reindex", "gc", "restore", "repair")


def exact(repo: Any) -> Any:
    """All that a repository says of its history, times and ids included."""
    return repo.log(all=True), repo.operations(), repo.branches(), repo.tags()


def told(store: Path, folder: Path) -> Any:
    """The same without times and ids that depend on them, so that runs can be compared; and what was checked out."""
    try:
        repo = rblstore.open(store)
    except NoRepositoryError:
        return NOT_THERE
    with repo:
        entries = {entry.commit: entry for entry in repo.log(all=True)}

        def history(commit: Any) -> Any:
            entry = entries.get(commit)
            return entry and (entry.message, entry.composition, [history(parent) for parent in entry.parents])

        return {
            "branches": [(branch.name, branch.current, history(branch.commit)) for branch in repo.branches()],
            "tags": [(tag.name, history(tag.commit), tag.message) for tag in repo.tags()],
            "operations": [(one.sequence, one.description, one.undone) for one in repo.operations()],
            "out": digests(folder / "out") if (folder / "out").exists() else None,
        }


def left_in(folder: Path) -> list[Path]:
    """What is still there of what processes put where nobody was to see it: in ``tmp/``, and beside a checkout."""
    return [*folder.glob("*/.rbl/tmp/*"), *folder.glob(".*rbl-tmp*")]


@dataclass(frozen=True)
class Trial:
    """One try of a command: a folder with a repository of its own.

    Attributes:
        folder: What holds it, and whatever is checked out.
        store: The repository.
        arguments: The command line.
    """

    folder: Path
    store: Path
    arguments: tuple[str, ...]


class Story:
    """The repository that every trial begins with, and what each command makes of it.

    Args:
        server: Runs commands.
        folder: A folder; trials take place in its ``trials``, which may be there already.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.made = folder / "made"
        self._trials = folder / "trials"
        self._trials.mkdir(exist_ok=True)
        base = write_checkpoint(self.made / "base", SIZE, 1)
        write_checkpoint(self.made / "next", SIZE, 2)
        write_checkpoint(self.made / "later", SIZE, 3)
        sources = {"ft": 4, "more": 5, "tuned": 6}
        for name, seed in sources.items():
            write_tuned(self.made / name, base, seed)
        # A fine-tune before its base, and nothing compressed: there is something for repack to do.
        with rblstore.init(self.made / "store") as repo:
            repo.commit("ft", identity=self.made / "ft", compression="none")
            repo.create_tag("v0")
            repo.switch("base", orphan=True)
            repo.commit("base", identity=base, compression="none")
            repo.commit("more", behaviors={"more": self.made / "more"}, compression="none")
            self._last = repo.operations(1)[0].id
        (self.made / "store" / ".rbl" / "stat-cache").unlink(missing_ok=True)  # not written for files as young as these
        self._stores = {
            "gc": self._with_garbage(),
            "restore": self._with_trash(),
            "repair": self._with_damage(),
        }
        self._exact = {}
        for name in COMMANDS.keys() - {"init"}:
            with rblstore.open(self._store(name)) as repo:
                self._exact[name] = exact(repo)
        names = [*sources, "base", "next", "later"]
        self._sources = {name: digests(self.made / name) for name in names} | {"reverted": digests(base)}
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self._number = 0

    def _store(self, command: str) -> Path:
        """What a command's trials begin with."""
        return self._stores.get(command, self.made / "store")

    def _with_garbage(self) -> Path:
        """A copy in which commits are reached by nothing: in the trash, in packs of their own, and among others."""
        store = shutil.copytree(self.made / "store", self.made / "garbage")
        settings = store / ".rbl" / "config.toml"
        settings.write_text(settings.read_text().replace("operations = 90 ", "operations = 0 "))
        with rblstore.open(store) as repo:
            for number, name in enumerate(("next", "tuned", "later")):
                repo.commit(name, identity=self.made / name, branch=name)
                repo.delete_branch(name)
                if number == 0:
                    assert repo.gc(apply=True, grace_days=0).packs
                elif number == 1:
                    assert repo.repack(compression="none").changed
        return store

    def _with_trash(self) -> Path:
        """A copy of that in which all of it is in the trash."""
        store = shutil.copytree(self.made / "garbage", self.made / "trash")
        with rblstore.open(store) as repo:
            assert repo.gc(apply=True, grace_days=0).packs_written
        return store

    def _with_damage(self) -> Path:
        """A copy in which a byte of every pack of contents is another."""
        store = shutil.copytree(self.made / "store", self.made / "damaged")
        for pack in store.rglob("*.pack"):
            data = bytearray(pack.read_bytes())
            if data[8:9] == b"C":
                data[100] ^= 1
                pack.chmod(0o644)
                pack.write_bytes(data)
                pack.chmod(0o444)
        return store

    def trial(self, command: str) -> Trial:
        """A fresh try of a command."""
        self._number += 1
        folder = self._trials / str(self._number)
        store = folder / "store"
        folder.mkdir()
        if command != "init":
            shutil.copytree(self._store(command), store)
        words = [word.format(made=self.made, folder=folder, last=self._last) for word in COMMANDS[command]]
        return Trial(folder, store, ("-C", str(store if command != "init" else folder), *words, "--json"))

    def run(self, trial: Trial, fault: Fault | None = None, **options: Any) -> Done:
        """Runs the command of a trial; see :meth:`forked.Server.run`."""
        return self.server.run(*trial.arguments, roots=(trial.folder,), fault=fault, **options)

    def learn(self, command: str, **options: Any) -> tuple[str, ...]:
        """Runs a command whole, remembers what it makes of the repository, and returns its system calls."""
        trial = self.trial(command)
        self.before[command] = told(trial.store, trial.folder)
        done = self.run(trial, **options)
        assert done.code == 0, done.err
        self.after[command] = told(trial.store, trial.folder)
        assert (self.before[command] == self.after[command]) == (command in UNTOLD)
        self._check_whole(trial)
        shutil.rmtree(trial.folder)
        return done.calls

    def check(self, command: str, trial: Trial, *, done: bool | None, later: bool = True) -> bool:
        """Checks what is left of a trial, and goes on with it; returns whether the command had come about.

        Args:
            command: Which.
            trial: The try.
            done: Whether the command said that it came about; None where it did not say.
            later: Whether to try another command after it, too.
        """
        before, after = self.before[command], self.after[command]
        if command == "repair":
            # What is damaged is so until it is repaired, and may not open half-way: whoever repairs again finishes.
            again = self.run(trial)
            assert again.code == 0, again.err
            self._check_whole(trial)
        found = told(trial.store, trial.folder)
        assert found in (before, after), f"{command}: a third state:\n{found}\nneither\n{before}\nnor\n{after}"
        assert done is None or found == (after if done else before)
        if found != NOT_THERE:
            self._check_whole(trial)
        if found == before:
            if before not in (after, NOT_THERE):
                with rblstore.open(trial.store) as repo:
                    assert exact(repo) == self._exact[command]
            again = self.run(trial)
            assert again.code == 0, again.err
            assert told(trial.store, trial.folder) == after
        if later:
            with rblstore.open(trial.store) as repo:
                commits = len(repo.operations())
                repo.commit("later", identity=self.made / "later", branch="later")
                assert len(repo.operations()) == commits + 1
                assert repo.fsck().damages == ()
                repo.gc(apply=True)
            assert left_in(trial.folder) == []
        shutil.rmtree(trial.folder)
        return bool(found == after)

    def _check_whole(self, trial: Trial) -> None:
        with rblstore.open(trial.store) as repo:
            assert repo.fsck(full=True).damages == ()
            for entry in repo.log(all=True):
                target = trial.folder / "check"
                repo.checkout(entry.commit, target)
                assert digests(target) == self._sources[entry.message.split("\n")[0]]
                shutil.rmtree(target)


def sampled(sorts: Sequence[str], moment: Any) -> list[int]:
    """Numbers, from 1, of things of which each is of some sort: first one of each sort, then the rest, at random."""
    numbers = list(range(1, len(sorts) + 1))
    moment.shuffle(numbers)
    first: dict[str, int] = {}
    for number in numbers:
        first.setdefault(sorts[number - 1], number)
    chosen = set(first.values())
    return [*first.values(), *(number for number in numbers if number not in chosen)]


def sort(call: str) -> str:
    """A call without what of its path is drawn at random, or follows from a time."""
    name, _, path = call.partition(" ")
    parts = path.split("/")
    return f"{name} " + "/".join(
        "*" if part[:1].isdigit() or ".pack" in part or "rbl-tmp" in part else part for part in parts[1:]
    )
