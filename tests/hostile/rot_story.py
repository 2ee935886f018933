"""A small repository with some of everything, what it must answer, and the ways in which a disk spoils its files."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tiny_checkpoints import Tensor, checked_out, values, write_adapter, write_base

import rblstore
from rblstore.errors import RblError

AUTHOR = "Ada Lovelace <ada@example.org>"
CHECKOUTS = ("main", "main~1", "main~2", "v1", "other")
TENSORS = (("main~1", "model.embed_tokens.weight"), ("main", "model.norm.weight"), ("other", "lm_head.weight"))
# What commit last looked at was a while ago, or it would not be trusted for what a file is.
_real_time = time.time_ns
_LATER = 3600 * 10**9


@contextmanager
def later() -> Iterator[None]:
    """An hour on, for whoever asks whether a file may have changed since."""
    with mock.patch("time.time_ns", side_effect=lambda: _real_time() + _LATER):
        yield


def scratch() -> Path:
    """A folder in memory where there is one: thousands of repositories are made and thrown away."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="rbl-rot-", dir=shared if shared.is_dir() else None))


@dataclass(frozen=True)
class Story:
    """A repository, and the truth about it.

    Attributes:
        store: The folder that holds ``.rbl``; never changed.
        models: What was committed.
        truth: What each question is to be answered.
        held: The contents of each pack, by its name.
    """

    store: Path
    models: Path
    truth: dict[str, Any]
    held: dict[str, frozenset[str]]

    def files(self) -> dict[str, bytes]:
        """Every file under ``.rbl`` that may rot, by its path there."""
        folder = self.store / ".rbl"
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def copy(self, to: Path) -> Path:
        """The same repository elsewhere; returns ``to``."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.store, to, copy_function=shutil.copyfile)
        return to


def make_story(folder: Path, *, noise: int = 0) -> Story:
    """Two identities on two branches, an adapter, an overlay, a tag, a revert, statements, and an operation undone.

    Args:
        folder: Where.
        noise: Bytes of a tensor that nothing makes smaller, so that there is more to rot.
    """
    models = folder / "models"
    zeros = Tensor("F32", (64, 8), bytes(2048))
    extra = {"noise": Tensor("U8", (noise,), random.Random(5).randbytes(noise))} if noise else {}
    base = write_base(models / "base", model__zeros=zeros, **extra)
    tuned = write_base(models / "tuned", model__zeros=zeros, model__norm__weight=values(4, seed=9), **extra)
    other = write_base(models / "other", seed=3)
    adapter = write_adapter(models / "adapter")
    with later(), rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=base, license="apache-2.0", author=AUTHOR)
        repo.create_tag("v1", message="the first", author=AUTHOR)
        repo.commit("polite", behaviors={"polite": adapter}, author=AUTHOR)
        repo.revert(behavior="polite", verify=False, author=AUTHOR)
        repo.commit("tuned", behaviors={"tuned": tuned}, author=AUTHOR)
        repo.create_branch("gone", author=AUTHOR)
        repo.undo(author=AUTHOR)
        repo.switch("other", orphan=True, author=AUTHOR)
        repo.commit("other", identity=other, author=AUTHOR)
        repo.switch("main", author=AUTHOR)
        store = repo._store
        held = {
            pack: frozenset(location.content for location in store.pack(pack).summary().locations)
            for pack in store.packs()
        }
        assert repo.fsck(full=True).ok
    assert (folder / "store" / ".rbl" / "stat-cache").exists()
    story = Story(folder / "store", models, {}, held)
    with rblstore.open(story.copy(folder / "asked")) as repo:
        story.truth.update({name: ask(repo) for name, ask in questions(story, folder / "answers").items()})
    shutil.rmtree(folder / "asked")
    return story


def as_json(result: Any) -> Any:
    """A result or a list of them as a document."""
    document = [one.as_json() for one in result] if isinstance(result, list) else result.as_json()
    return json.loads(json.dumps(document))


def questions(story: Story, out: Path) -> dict[str, Callable[[Any], Any]]:
    """What a repository is asked, by name; each asks an open one. The last ones change it.

    Args:
        story: Of which repository.
        out: A folder for what is checked out, emptied each time.
    """
    asked: dict[str, Callable[[Any], Any]] = {
        "log": lambda repo: as_json(repo.log(all=True)),
        "status": lambda repo: as_json(repo.status()),
        "branches": lambda repo: as_json(repo.branches()),
        "tags": lambda repo: as_json(repo.tags()),
        "operations": lambda repo: as_json(repo.operations()),
        "show": lambda repo: as_json(repo.show()),
        "audit": lambda repo: as_json(repo.audit("v1")),
    }
    for revision in CHECKOUTS:
        asked[f"checkout {revision}"] = lambda repo, revision=revision: _checkout(repo, revision, out)
    for revision, name in TENSORS:
        asked[f"tensor {name} of {revision}"] = lambda repo, revision=revision, name=name: _tensor(repo, revision, name)
    asked["revert"] = lambda repo: _revert(repo, out)
    asked["commit"] = lambda repo: _commit(repo, story.models)
    return asked


def _checkout(repo: Any, revision: str, out: Path) -> dict[str, str]:
    shutil.rmtree(out, ignore_errors=True)
    try:
        repo.checkout(revision, out)
    except RblError:
        assert not out.exists(), "a checkout that was refused left something behind"
        raise
    return checked_out(out)


def _tensor(repo: Any, revision: str, name: str) -> str:
    tensor = repo.tensor(revision, name)
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def _revert(repo: Any, out: Path) -> Any:
    result = repo.revert(behavior="tuned", verify=False, author=AUTHOR)
    return result.composition, result.removed, _checkout(repo, "HEAD", out)


def _commit(repo: Any, models: Path) -> Any:
    """What was committed already, and was not touched: with the stat cache, without reading it."""
    with later():
        result = repo.commit("again", identity=models / "other", branch="other", allow_empty=True, author=AUTHOR)
    return result.composition, result.identity


# -- rot --------------------------------------------------------------------------------------------------------------


def flip_bit(data: bytes, chance: random.Random) -> bytes:
    """One bit turned over."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def change_byte(data: bytes, chance: random.Random) -> bytes:
    """One byte of any other value."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([(data[at] + chance.randrange(1, 256)) % 256]) + data[at + 1 :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    """The end is gone."""
    return data[: chance.randrange(len(data))]


def zero_block(data: bytes, chance: random.Random) -> bytes:
    """Zeros where a block was."""
    length = chance.choice((1, 16, 128, 512, 4096))
    at = chance.randrange(len(data))
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def append(data: bytes, chance: random.Random) -> bytes:
    """Something follows that nobody wrote."""
    return data + chance.choice((b"\0", b"\n", bytes(80), chance.randbytes(100), data[-80:]))


ROT = (flip_bit, flip_bit, change_byte, change_byte, truncate, zero_block, append)


@dataclass(frozen=True)
class Rotted:
    """What became of a repository's files.

    Attributes:
        what: In words.
        changed: The files that are not what they were, by path under ``.rbl``.
    """

    what: str
    changed: tuple[str, ...]


def target_of(files: dict[str, bytes], chance: random.Random) -> str:
    """A file to spoil; every kind of file has its turn, whatever its size."""
    packs = sorted(name for name in files if name.startswith("packs/"))
    kinds = (*itertools.repeat("pack", 8), *itertools.repeat("catalog.db", 5), *itertools.repeat("refs.log", 4))
    kind = chance.choice((*kinds, "stat-cache", "format", "config.toml", "lock"))
    return chance.choice(packs) if kind == "pack" else kind


def rot(folder: Path, files: dict[str, bytes], chance: random.Random) -> Rotted:
    """Spoils one file under ``.rbl``, or swaps the names of two packs; never leaves everything as it was."""
    name = target_of(files, chance)
    way = chance.random()
    if name.startswith("packs/") and way < 0.05:
        other = chance.choice([one for one in files if one.startswith("packs/") and one != name])
        (folder / name).write_bytes(files[other])
        (folder / other).write_bytes(files[name])
        return Rotted(f"{name} and {other} swapped", (name, other))
    if way < 0.12:
        (folder / name).unlink()
        return Rotted(f"{name} deleted", (name,))
    while True:
        spoil = append if not files[name] else chance.choice(ROT)
        data = spoil(files[name], chance)
        if data != files[name]:
            (folder / name).write_bytes(data)
            pairs = enumerate(zip(data, files[name], strict=False))
            first = next((at for at, (new, old) in pairs if new != old), min(len(data), len(files[name])))
            return Rotted(f"{name}: {spoil.__name__}, from byte {first} on", (name,))
