"""R1: a repack that is killed, interrupted or refused by the system: the packs before or after, never a third.

python -m pytest tests/crash/test_kill_repack.py
RBL_TEST_TIER=full python -m pytest tests/crash/test_kill_repack.py
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import digests, write_checkpoint, write_tuned
from forked import Server
from trials import FULL, Trials

import rblstore
from rblstore.catalog.database import Catalog
from rblstore.catalog.engine import CommitOutcomeUnknownError
from rblstore.catalog.writer import CatalogWriter
from rblstore.errors import RblError

MOST_STEPS = 500 if FULL else 60


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune committed before its base, and a fine-tune on that: all as they are."""
    folder = tmp_path_factory.mktemp("repack")
    base = write_checkpoint(folder / "base", 200 << 10, 1)
    with rblstore.init(folder / "store") as repo:
        repo.commit("ft", identity=write_tuned(folder / "ft", base, 2), compression="none")
        repo.switch("base", orphan=True)
        repo.commit("base", identity=base, compression="none")
        repo.commit("more", behaviors={"more": write_tuned(folder / "more", base, 3)}, compression="none")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path / "store"


def told(repo: Any) -> Any:
    return repo.log(all=True), repo.operations(), repo.branches()


def packs(store: Path) -> set[str]:
    return {path.stem for path in store.rglob("*.pack")}


def listed(repo: Any) -> set[str]:
    with repo._store.catalog.read() as reader:
        return {str(row.pack) for row in reader.packs()}


def check(made: Path, store: Path, folder: Path, before: Any, *, leftovers: bool) -> None:
    """Checks what is left: everything there and whole, and another repack does the rest."""
    with rblstore.open(store) as repo:
        assert told(repo) == before
        assert repo.fsck(full=True).damages == ()
        assert leftovers or listed(repo) == packs(store)
        for revision, name in (("main", "ft"), ("base~1", "base"), ("base", "more")):
            target = folder / f"out-{name}"
            repo.checkout(revision, target)
            assert digests(target) == digests(made / name)
            shutil.rmtree(target)
    if leftovers:
        rblstore.reindex(store)
    with rblstore.open(store) as repo:
        repo.repack(compression="fast")
        assert repo.fsck(full=True).damages == ()
        assert not repo.repack(compression="fast").changed
        assert told(repo)[0] == before[0]
        assert listed(repo) == packs(store)
        assert repo.du().contents.ratio > 2


@pytest.mark.slow
def test_a_killed_repack(server: Server, made: Path, tmp_path: Path) -> None:
    with rblstore.open(made / "store") as repo:
        before = told(repo)
    with Trials("R1", "kills at random: repack of differences", quick=8, full=400) as run:
        for number in run:
            folder = tmp_path / str(number)
            store = folder / "store"
            shutil.copytree(made / "store", store)
            server.employ("repack", store, folder, made / "more")
            server.hear(run.moment.choice((0, 1, 2, 3)), run.moment.uniform(0.0, 0.15))
            killed = server.dismiss()
            run.count("acknowledged", len(killed.acknowledged))
            with rblstore.open(store) as repo:
                run.count("left packs that the catalog does not list", listed(repo) != packs(store))
            check(made, store, folder, before, leftovers=True)
            shutil.rmtree(folder)


def test_checkouts_beside_a_process_that_repacks_all_the_time(
    server: Server, made: Path, store: Path, tmp_path: Path
) -> None:
    server.employ("repack", store, tmp_path, made / "more")
    with rblstore.open(store) as repo:
        for number in range(40 if FULL else 6):
            for revision, name in (("main", "ft"), ("base", "more")):
                repo.checkout(revision, tmp_path / f"{name}{number}")
                assert digests(tmp_path / f"{name}{number}") == digests(made / name)
            server.hear(1)
        assert server.dismiss().acknowledged
        assert repo.fsck(full=True).damages == ()


class Failing:
    """Lets so many calls pass, and raises at the next one."""

    def __init__(self, number: int, error: Callable[[], BaseException], *, after: bool = False) -> None:
        self._left = number
        self._error = error
        self._after = after
        self.failed = False

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left != -1:
                return real(*arguments, **options)
            self.failed = True
            if self._after:
                real(*arguments, **options)
            raise self._error()

        return call


CALLS = [(os, name) for name in ("write", "fsync", "rename", "fchmod", "open")] + [
    (CatalogWriter, "add_pack"),
    (CatalogWriter, "forget_packs"),
]


@pytest.mark.parametrize(("where", "name"), CALLS, ids=[name for _, name in CALLS])
@pytest.mark.parametrize(
    ("kind", "after"), [("refused", False), ("interrupted", False), ("interrupted", True)], ids=["no", "^C", "late ^C"]
)
def test_a_step_that_fails(
    where: Any, name: str, kind: str, after: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of a kind in turn, until there is none left to fail; no pack is left that is not needed."""

    def error() -> BaseException:
        return KeyboardInterrupt() if kind == "interrupted" else OSError(errno.EIO, os.strerror(errno.EIO))

    raised = (RblError, OSError) if where is not os else RblError
    pace = 1 if FULL else {"open": 29, "write": 4}.get(name, 2)  # every frame that is read is an open
    for number in range(0, MOST_STEPS * pace, pace):
        store = tmp_path / str(number)
        shutil.copytree(made / "store", store)
        failing = Failing(number, error, after=after)
        with rblstore.open(store) as repo:
            before = told(repo)
            with monkeypatch.context() as patches:
                patches.setattr(where, name, failing.wrapped(getattr(where, name)))
                try:
                    repo.repack()
                except KeyboardInterrupt:
                    assert kind == "interrupted"
                except raised:
                    assert kind == "refused"
                else:
                    break
        assert failing.failed
        # A file that was made, and of which nobody was told, nobody can clear away.
        leftovers = after and name == "open"
        assert leftovers or list((store / ".rbl" / "tmp").iterdir()) == []
        check(made, store, tmp_path, before, leftovers=leftovers)
        shutil.rmtree(store)
    else:
        pytest.fail(f"a repack of {name} calls without end")
    assert not failing.failed
    assert number > 0


@pytest.mark.parametrize("kind", ["interrupted", "unknown"])
def test_what_comes_after_the_transaction(
    kind: str, made: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new packs are listed, whatever was heard of it; they must not be taken for leftovers."""
    real = Catalog.write

    @contextmanager
    def write(self: Catalog) -> Iterator[Any]:
        with real(self) as writer:
            yield writer
        raise KeyboardInterrupt if kind == "interrupted" else CommitOutcomeUnknownError("nobody knows")

    with rblstore.open(store) as repo:
        before, old = told(repo), packs(store)
        with monkeypatch.context() as patches:
            patches.setattr(Catalog, "write", write)
            with pytest.raises((KeyboardInterrupt, CommitOutcomeUnknownError)):
                repo.repack()
        assert not listed(repo) & old
        assert (packs(store) >= old) == (kind == "unknown")
    check(made, store, tmp_path, before, leftovers=kind == "unknown")


def test_an_outcome_that_nobody_knows_and_that_was_none(
    made: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: CatalogWriter, forgotten: Any) -> None:
        raise CommitOutcomeUnknownError("nobody knows")

    with rblstore.open(store) as repo:
        before, old = told(repo), packs(store)
        with monkeypatch.context() as patches:
            patches.setattr(CatalogWriter, "forget_packs", forget)
            with pytest.raises(CommitOutcomeUnknownError):
                repo.repack()
        assert listed(repo) == old
        assert packs(store) > old
    check(made, store, tmp_path, before, leftovers=True)


def test_old_packs_that_cannot_be_deleted(
    made: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is made all the same, and what is left is named."""
    real = Path.unlink

    def unlink(self: Path, **options: Any) -> None:
        if self.suffix == ".pack":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(self, **options)

    with rblstore.open(store) as repo:
        before, old = told(repo), packs(store)
        with monkeypatch.context() as patches:
            patches.setattr(Path, "unlink", unlink)
            result = repo.repack()
        assert result.changed
        assert set(result.left) == old
        assert packs(store) == old | listed(repo)
    check(made, store, tmp_path, before, leftovers=True)


def test_a_catalog_that_changed_since_the_plan(
    made: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that no lock keeps out: the last copy of what it added is not forgotten, and its pack is left alone."""
    real = CatalogWriter.forget_packs
    with rblstore.open(store) as repo:
        old = packs(store)

        def forget(self: CatalogWriter, forgotten: Any) -> None:
            gone = list(forgotten)
            self._run(rblstore_delete(gone[0]))
            real(self, gone)

        def rblstore_delete(pack: str) -> Any:
            from sqlalchemy import select, update

            from rblstore.catalog.tables import packs as table

            number = select(table.c.number).where(table.c.id == pack).scalar_subquery()
            return update(table).where(table.c.number == number).values(id="0" * 64)

        before = told(repo)
        with monkeypatch.context() as patches:
            patches.setattr(CatalogWriter, "forget_packs", forget)
            with pytest.raises(RblError) as caught:
                repo.repack()
        assert caught.value.code == "last_copy"
        assert listed(repo) == packs(store) == old
    check(made, store, tmp_path, before, leftovers=False)
