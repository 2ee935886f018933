"""Repositories with something to collect, and what holds of every gc."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoints import Tensor, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.objects.ids import CommitId, ContentId, PackId
from rblstore.operations.gc import GcResult
from rblstore.storage.disk import DiskBackend
from rblstore.storage.pack_format import pack_key

DAY = 86_400


def opened(folder: Path, *, grace: int = 0, operations: int = 0) -> Any:
    """A repository whose settings keep nothing longer than a test says."""
    if not folder.exists():
        rblstore.init(folder).close()
    (folder / ".rbl" / "config.toml").write_text(f"[gc]\ngrace = {grace}\noperations = {operations}\n")
    return rblstore.open(folder)


@contextmanager
def whole(folder: Path) -> Iterator[Any]:
    """The same; it is whole in the end, also with a catalog that is rebuilt."""
    with opened(folder) as repo:
        yield repo
        check(repo)


def packs(repo: Any, room: str = "packs") -> set[str]:
    return {key[-69:-5] for key in repo._store.backend.list(f"{room}/")}


def listed(repo: Any) -> set[str]:
    with repo._store.catalog.read() as reader:
        return {str(row.pack) for row in reader.packs()}


def rows(repo: Any) -> Any:
    """Everything that the catalog holds, but for numbers that stand for ids."""
    with repo._store.catalog.read() as reader:
        records = dict(reader.records())
        evidence = {one: set(found) for one, found in reader.evidence_for(records).items() if found}
        commits = {one: reader.commit(CommitId(one)) for one, kind in records.items() if kind == "commit"}
        compositions = {one: reader.composition(one) for one, kind in records.items() if kind == "composition"}
        contents = {row.pack: reader.contents_of_pack(row.pack) for row in reader.packs()}
        return records, evidence, commits, compositions, contents, reader.refs(""), reader.operations()


def check(repo: Any) -> None:
    """What holds after every gc: whole, and a rebuilt catalog says the same."""
    assert repo.fsck(full=True).damages == ()
    assert listed(repo) == packs(repo)
    before = rows(repo)
    rblstore.reindex(repo.path)
    assert rows(repo) == before
    assert repo.fsck(full=True).damages == ()


def collect(repo: Any, **options: Any) -> GcResult:
    """Collects, and checks what holds of every gc."""
    names, before = packs(repo) | packs(repo, "trash"), rows(repo)
    plan = repo.gc(**options)
    assert (plan.applied, plan.bytes_written) == (False, None)
    assert (packs(repo) | packs(repo, "trash"), rows(repo)) == (names, before)
    result: GcResult = repo.gc(apply=True, **options)
    for name in ("changed", "commits", "dead", "packs", "bytes_to_trash", "deleted", "bytes_freed", "trash_packs"):
        assert getattr(result, name) == getattr(plan, name), name
    assert {one.pack for one in result.packs} <= packs(repo, "trash")
    assert not set(result.deleted) & packs(repo, "trash")
    trash = [pack_key(PackId(one), "trash") for one in packs(repo, "trash")]
    assert (len(trash), sum(map(repo._store.backend.size, trash))) == (result.trash_packs, result.trash_bytes)
    assert repo.fsck().damages == ()
    return result


def age(repo: Any, days: float, *, which: set[str] | None = None, room: str = "packs") -> None:
    """Moves packs so many days into the past."""
    for key in repo._store.backend.list(f"{room}/"):
        if which is None or key[-69:-5] in which:
            path = repo.path / ".rbl" / key
            when = path.stat().st_mtime - days * DAY
            os.utime(path, (when, when))


def side_branch(repo: Any, folder: Path, name: str = "side", seed: int = 7) -> Any:
    """An adapter committed on a branch that is deleted again; returns the commit's result."""
    repo.switch(name, create=True)
    made = repo.commit(name, behaviors={name: write_adapter(folder / name, seed=seed, lora_alpha=seed)})
    repo.switch("main")
    repo.delete_branch(name)
    return made


def base(repo: Any, folder: Path, seed: int = 0) -> Any:
    return repo.commit("base", identity=write_base(folder / f"base-{seed}", seed=seed))


def stored_records(repo: Any) -> dict[str, str]:
    with repo._store.catalog.read() as reader:
        return {str(one): kind for one, kind in reader.records()}


class Clock:
    """A file system's clock that is days ahead."""

    def __init__(self, repo: Any, days: float) -> None:
        self._backend, self._days = repo._store.backend, days

    def __enter__(self) -> None:
        real = DiskBackend.now
        self._backend.now = lambda: real(self._backend) + self._days * DAY

    def __exit__(self, *_: object) -> None:
        del self._backend.now


WHEN = "2026-01-01T00:00:00Z"


def composition_of(repo: Any, commit: Any) -> Any:
    with repo._store.catalog.read() as reader:
        return reader.commit(commit).composition


def model(folder: Path, *seeds: int, rows_of: int = 40) -> Path:
    """A checkpoint of as many tensors of one size."""
    tensors = {
        f"model.layers.{at}.weight": Tensor("F32", (rows_of, 64), np.random.default_rng(seed).bytes(rows_of * 256))
        for at, seed in enumerate(seeds)
    }
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def orphan(repo: Any, name: str, folder: Path) -> Any:
    repo.switch(name, orphan=True)
    return repo.commit(name, identity=folder)


def only_main(repo: Any) -> None:
    repo.switch("main")
    for branch in repo.branches():
        if branch.name != "main":
            repo.delete_branch(branch.name)


def difference(repo: Any, tmp_path: Path) -> tuple[ContentId, ContentId]:
    """An identity, and on another branch one of which a tensor is stored as a difference from the first's."""
    drawn = np.random.default_rng(1).normal(0, 0.02, (256, 64)).astype("<f4")
    under = (drawn.view("<u4") >> 16).astype("<u2")
    over = under + (np.random.default_rng(2).integers(0, 3, under.shape) == 0).astype("<u2")
    found = []
    for name, values in (("under", under), ("over", over)):
        tensor = Tensor("BF16", values.shape, values.tobytes())
        write_safetensors(tmp_path / name / "model.safetensors", {"model.weight": tensor})
        (tmp_path / name / "config.json").write_text(f'{{"model_type": "llama", "name": "{name}"}}')
        found.append(ContentId(hashlib.sha256(values.tobytes()).hexdigest()))
    repo.commit("under", identity=tmp_path / "under")
    repo.commit("over", identity=tmp_path / "over")
    return found[0], found[1]


class Stopped(Exception):  # noqa: N818 - it stands for a kill
    """What cuts something off in a test."""


def refuse(*_: Any, **__: Any) -> Any:
    raise Stopped
