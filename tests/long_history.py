"""A repository of thousands of commits, made in bulk: thousands of records a transaction, as a fetch would write."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tiny_checkpoints import write_adapter, write_base

import rblstore
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId

AUTHOR = "Ada Lovelace <ada@example.org>"
# Records, or contents, that one transaction gathers.
_AT_ONCE = 10_000
_CONTENT_BYTES = 64


def make_history(
    folder: Path, *, commits: int, contents: int = 0, tags: int = 5, said: Callable[[str], None] = lambda _: None
) -> Any:
    """Makes a repository, and returns it open.

    The first two commits are ordinary ones: a checkpoint and an adapter. Every later one gives the adapter another
    weight, so there are as many compositions as commits, and every tenth one is a merge.

    Args:
        folder: Where; models lie beside the repository ``store`` in it.
        commits: How many, those two included.
        contents: How many contents besides, of 64 bytes each.
        tags: How many tags, over the whole of history.
        said: Is told how far it is.
    """
    repo = rblstore.init(folder / "store")
    repo.commit("base", identity=write_base(folder / "base"), author=AUTHOR)
    made = [
        repo.head,
        repo.commit("polite", behaviors={"polite": write_adapter(folder / "adapter")}, author=AUTHOR).commit,
    ]
    store = repo._store
    with store.catalog.read() as reader:
        row = reader.commit(made[-1])
        first = reader.composition(row.composition)
    while len(made) < commits:
        with store.transaction(AUTHOR) as transaction:
            before = made[-1]
            for number in range(len(made), min(commits, len(made) + _AT_ONCE)):
                slot = Slot("polite", first.slots[0].behavior, 1 + number / 2**20)
                composition = transaction.add_record(Composition(first.identity, (slot,)))
                parents = (made[-1], made[-7]) if number % 10 == 0 and number > 20 else (made[-1],)
                time = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)).isoformat()
                commit = Commit(composition, parents, AUTHOR, time, f"commit {number}\n\nIt says a little more.")
                made.append(CommitId(transaction.add_record(commit)))
            transaction.set_ref("refs/heads/main", before, made[-1])
            transaction.describe("many commits")
        said(f"{len(made)} commits")
    chance = random.Random(7)
    for start in range(0, contents, _AT_ONCE):
        with store.transaction(AUTHOR) as transaction:
            for _ in range(min(_AT_ONCE, contents - start)):
                transaction.add_content([chance.randbytes(_CONTENT_BYTES)])
        said(f"{start + _AT_ONCE} contents")
    for number in range(tags):
        repo.create_tag(f"v{number}", made[number * (len(made) - 1) // max(tags - 1, 1)], author=AUTHOR)
    return repo
