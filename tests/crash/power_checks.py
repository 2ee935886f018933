"""What must be true of a repository after a power cut, whatever was cut."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from checkpoint_files import digests, write_checkpoint
from power_story import account

import rblstore
from rblstore.storage.refs_log import RefsLog


def check_durable(store: Path, acknowledged: dict[str, Any]) -> None:
    """Checks, before anybody opens it, that the log and the catalog each have what was acknowledged.

    Opening would mend the one with the other, so either could do without its fsync until the other is lost, too.
    """
    sequence = acknowledged["sequence"]
    operations = RefsLog(store / ".rbl" / "refs.log").read().operations
    assert len(operations) >= sequence, f"refs.log has lost operation {sequence}: it ends with {len(operations)}"
    found = operations[sequence - 1]
    assert type(found).id_of(found.encode()) == acknowledged["operation"], (
        f"refs.log tells another operation {sequence}"
    )
    with closing(sqlite3.connect(store / ".rbl" / "catalog.db")) as catalog:
        (last,) = catalog.execute("SELECT max(sequence) FROM operations").fetchone()
    assert last is not None, "the catalog has lost every operation"
    assert last >= sequence, f"the catalog has lost operation {sequence}: it ends with {last}"


def check_opened(
    store: Path, known: dict[str, Any] | None, coming: dict[str, Any] | None, *, guess: bool = False
) -> str:
    """Checks that a repository is as it was before or after what was being done, and whole; returns the operation.

    Args:
        store: The repository.
        known: What was acknowledged last.
        coming: What would have been acknowledged next.
        guess: Whether that is not known, and may be any one operation.
    """
    with rblstore.open(store) as repo:
        now = account(repo)
        fitting = [one for one in (known, coming) if one is not None and one["operation"] == now["operation"]]
        further = known is not None and now["sequence"] == known["sequence"] + 1
        assert fitting or (guess and further), f"{now} is the newest operation after {known}, before {coming}"
        assert all(one["refs"] == now["refs"] for one in fitting), (now, fitting)
        report = repo.fsck(full=True)
        assert report.damages == (), report.damages
        operations = RefsLog(store / ".rbl" / "refs.log").read().operations
        told = [(one.sequence, str(one.id)) for one in repo.operations()][::-1]
        assert told == [(number, str(type(one).id_of(one.encode()))) for number, one in enumerate(operations, 1)]
    return str(now["operation"])


def check_content(store: Path, sources: Path, revision: str, folder: Path) -> None:
    """Checks out a commit whose message names its source, and compares."""
    with rblstore.open(store) as repo:
        name = repo.log(revision, limit=1)[0].message
        repo.checkout(revision, folder / "out")
        assert digests(folder / "out") == digests(sources / name)
    shutil.rmtree(folder / "out")


def check_again(store: Path, sources: Path, name: str, folder: Path) -> None:
    """Makes the commit that was cut, once more: what is left of it must not be taken for whole."""
    with rblstore.open(store) as repo:
        standing = [slot.name for slot in repo.status().slots]
        repo.commit(name, identity=sources / name, remove=standing)
        report = repo.fsck(full=True)
        assert report.damages == (), report.damages
    check_content(store, sources, "HEAD", folder)


def check_usable(store: Path, folder: Path, number: int) -> None:
    """Checks that the next commit works, and what follows it."""
    with rblstore.open(store) as repo:
        before = repo.operations(limit=1)[0].sequence
        source = write_checkpoint(folder / "after", 1 << 10, 1000 + number)
        standing = [slot.name for slot in repo.status().slots]
        commit = repo.commit("after", identity=source, remove=standing).commit
        assert repo.head == commit
        assert repo.operations(limit=1)[0].sequence == before + 1
        assert number % 4 or repo.fsck().damages == ()
    with rblstore.open(store) as repo:
        assert repo.head == commit
    shutil.rmtree(folder / "after")
