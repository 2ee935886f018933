"""Commands that are recorded, one after another; each is acknowledged on stdout once it has returned.

    python power_story.py STORY STORE SOURCES

An acknowledgement is one write of one line of JSON: what was done, the newest operation, and every ref.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoint_files import write_checkpoint, write_tuned

import rblstore

GIVEN = ("base", "tuned", "next", "last", "large")


def write_sources(folder: Path) -> Path:
    """The checkpoints that are committed, by the names that they have in messages of commits."""
    base = write_checkpoint(folder / "base", 8 << 10, 1)
    write_tuned(folder / "tuned", base, 2)
    write_checkpoint(folder / "next", 8 << 10, 3)
    write_checkpoint(folder / "last", 2 << 10, 4)
    write_checkpoint(folder / "large", 60 << 10, 5)
    return folder


def refs(repo: Any) -> dict[str, str]:
    """What every ref stands for."""
    found = {f"branch {one.name}": str(one.commit) for one in repo.branches()}
    found |= {f"tag {one.name}": str(one.commit) for one in repo.tags()}
    return {**found, "HEAD": repo.branch}


def account(repo: Any, source: str = "") -> dict[str, Any]:
    """What is acknowledged: everything up to the newest operation, which names the one before, and so on.

    Args:
        repo: The repository.
        source: What was committed as an identity, if that was what was done.
    """
    newest = repo.operations(limit=1)[0]
    return {"source": source, "operation": str(newest.id), "sequence": newest.sequence, "refs": refs(repo)}


def prepare(store: Path, sources: Path) -> None:
    """The repository that most stories begin with: two commits, a tag, packs to repack; garbage has no grace."""
    with rblstore.init(store) as repo:
        repo.commit("base", identity=sources / "base", compression="none")
        repo.create_tag("first")
        repo.commit("large", identity=sources / "large", compression="none")
    (store / ".rbl" / "config.toml").write_text("[gc]\ngrace = 0\noperations = 0\n")


def beginning(store: Path, sources: Path) -> Iterator[tuple[Any, str]]:
    with rblstore.init(store) as repo:
        yield repo, ""
        repo.commit("base", identity=sources / "base")
        yield repo, "base"


def writing(store: Path, sources: Path) -> Iterator[tuple[Any, str]]:
    with rblstore.open(store) as repo:
        repo.commit("next", identity=sources / "next")
        yield repo, "next"
        repo.create_tag("v1", message="a tag that is a record")
        yield repo, ""
        repo.commit("next tuned", behaviors={"tuned": write_tuned(sources / "tuning", sources / "next", 6)})
        yield repo, ""
        repo.revert(behavior="tuned", verify=False)
        yield repo, ""
        repo.undo()
        yield repo, ""
        repo.switch("other", create=True, start="first")
        yield repo, ""
        repo.commit("last", identity=sources / "last", compression="max")
        yield repo, "last"


def maintaining(store: Path, sources: Path) -> Iterator[tuple[Any, str]]:
    with rblstore.open(store) as repo:
        repo.repack(compression="fast")
        yield repo, ""
        repo.commit("next", identity=sources / "next", compression="none")
        yield repo, "next"
        repo.repack(compression="max")
        yield repo, ""
    rblstore.reindex(store)
    with rblstore.open(store) as repo:
        yield repo, ""
        repo.commit("last", identity=sources / "last")
        yield repo, "last"


def joining(store: Path, sources: Path) -> Iterator[tuple[Any, str]]:
    """In the folders of another writer, who has not made them durable; ``refs.log`` is missing, and written anew."""
    with rblstore.open(store) as repo:
        yield repo, ""
        repo.commit("next", identity=sources / "next")
        yield repo, "next"


def collecting(store: Path, sources: Path) -> Iterator[tuple[Any, str]]:
    """Garbage goes to the trash, comes back, and goes for good: nothing has any grace."""
    with rblstore.open(store) as repo:
        repo.create_branch("garbage", "first")
        yield repo, ""
        repo.commit("next", identity=sources / "next", branch="garbage")
        yield repo, ""
        repo.delete_branch("garbage")
        yield repo, ""
        repo.gc(apply=True)
        yield repo, ""
        repo.restore_trash()
        yield repo, ""
        repo.gc(apply=True)
        repo.gc(apply=True)
        yield repo, ""
        repo.commit("next", identity=sources / "next")
        yield repo, "next"


STORIES = {
    "beginning": beginning,
    "writing": writing,
    "maintaining": maintaining,
    "joining": joining,
    "collecting": collecting,
}


if __name__ == "__main__":
    for repo, source in STORIES[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])):
        os.write(1, json.dumps(account(repo, source)).encode() + b"\n")
