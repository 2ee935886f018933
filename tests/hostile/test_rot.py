"""R5: what rots is found and named, and never read as something else.

Each trial spoils one file of a small repository, and then asks the repository everything. An answer is the right one
or an error of the CorruptError family that names an object. What is spoiled in a pack, ``rbl fsck`` names. What is
spoiled in ``refs.log`` is refused, named, or written again as it was. The catalog is an index: what is spoiled there is
found, and then `rbl reindex` brings back the whole story; or it does no harm.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rot_story import Rotted, Story, make_story, questions, rot, scratch
from trials import FULL, Trials

import rblstore
from rblstore.catalog.schema_history import CatalogVersionError
from rblstore.errors import CorruptError, InputError, NoRepositoryError, RblError
from rblstore.operations.fsck import FsckResult

REFUSED: dict[str, tuple[type[RblError], ...]] = {
    "format": (NoRepositoryError,),
    "config.toml": (InputError,),
    "catalog.db": (CorruptError, CatalogVersionError),  # the number of another version is one bit away
}
BYTES = ("checkout", "tensor")
CHANGING = ("revert", "commit")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = scratch()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def story(folder: Path) -> Story:
    return make_story(folder / "small")


def reads(story: Story, chance: random.Random) -> list[str]:
    """Questions for one trial: some about history, some for bytes, and now and then one that changes something."""
    history = [name for name in story.truth if not name.startswith(BYTES) and name not in CHANGING]
    read = [name for name in story.truth if name.startswith(BYTES)]
    changing = [chance.choice(CHANGING)] if chance.random() < 0.15 else []
    return [*chance.sample(history, 3), *chance.sample(read, 2), *changing]


def ask(story: Story, store: Path, names: list[str], out: Path) -> dict[str, RblError]:
    """Asks; every answer must be the right one. What was refused comes back, by question."""
    refused: dict[str, RblError] = {}
    asked = questions(story, out)
    with rblstore.open(store) as repo:
        for name in names:
            try:
                answer = asked[name](repo)
            except RblError as error:
                refused[name] = error
            else:
                assert answer == story.truth[name], name
    return refused


def corrupt(refused: dict[str, RblError]) -> None:
    """Every refusal is of the right family and says of what it speaks."""
    for name, error in refused.items():
        assert isinstance(error, CorruptError), (name, error)
        assert error.object, (name, error)


def check(store: Path) -> FsckResult | RblError:
    """What fsck finds, or why the repository is not even opened."""
    try:
        with rblstore.open(store) as repo:
            result = repo.fsck()
    except RblError as error:
        return error
    assert result.ok == (not result.damages)
    assert all(damage.problem and damage.hint for damage in result.damages)
    return result


def judge(story: Story, store: Path, rotted: Rotted, chance: random.Random, out: Path) -> str:
    """What a spoiled repository does, in a word; fails where that is not what it may do."""
    (name, *_) = rotted.changed
    names = reads(story, chance)
    found = check(store)
    if isinstance(found, RblError):
        assert isinstance(found, REFUSED.get(name, (CorruptError,))), found
        assert found.object, found
        assert not name.startswith(("packs/", "stat-cache", "lock")), found
        if name == "catalog.db":
            return cure(story, store, names, out)
        return "refused"
    if name.startswith("packs/"):
        named = {damage.object for damage in found.damages}
        for path in rotted.changed:
            pack = Path(path).stem
            assert pack in named or named & story.held[pack], named
        corrupt(ask(story, store, names, out))
        return "found"
    if name == "catalog.db":
        if not found.ok:
            # What an index says of history may be wrong, and has been found; bytes never are.
            ask(story, store, [one for one in names if one.startswith((*BYTES, "revert"))], out)
            if "revert" not in names:
                return cure(story, store, names, out)
            rblstore.reindex(store)
            assert getattr(check(store), "ok", False)
            return "cured"
        assert ask(story, store, names, out) == {}
        return "harmless"
    if name == "refs.log":
        if not found.ok:
            assert "refs.log" in {damage.object for damage in found.damages}
            corrupt(ask(story, store, names, out))
            return "found"
        # Opening mended it from the catalog; what follows the last line, the next operation cuts.
        log = (story.store / ".rbl" / "refs.log").read_bytes()
        assert (store / ".rbl" / "refs.log").read_bytes().startswith(log)
        assert ask(story, store, [*dict.fromkeys([*names, "revert"])], out) == {}
        assert getattr(check(store), "ok", False)
        return "mended"
    assert name != "format"
    assert found.ok
    assert ask(story, store, names, out) == {}
    return "harmless"


def cure(story: Story, store: Path, names: list[str], out: Path) -> str:
    """What was found in the catalog, reindex cures without loss."""
    assert rblstore.reindex(store).skipped == ()
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).damages == ()
    refs = [name for name in ("log", "branches", "tags", "operations") if name not in names]
    assert ask(story, store, [*refs, *names], out) == {}
    return "cured"


@pytest.mark.slow
def test_what_rots_is_found_and_never_read_as_something_else(story: Story, folder: Path) -> None:
    files = story.files()
    store, out = folder / "store", folder / "out"
    with Trials("R5", "files that rot", quick=500, full=50_000) as run:
        for _ in run:
            story.copy(store)
            rotted = rot(store / ".rbl", files, run.moment)
            try:
                run.count(judge(story, store, rotted, run.moment, out))
            except BaseException as error:
                error.add_note(rotted.what) if hasattr(error, "add_note") else print(rotted.what)
                raise


@pytest.mark.slow
def test_every_byte_of_a_pack_is_guarded(folder: Path) -> None:
    """Quick: some of them. Full: each one of more than 64 KiB of packs."""
    story = make_story(folder / "large", noise=(64 if FULL else 8) << 10)
    files = {name: data for name, data in story.files().items() if name.startswith("packs/")}
    places = [(name, at) for name, data in files.items() for at in range(len(data))]
    store = story.copy(folder / "bytes")
    with Trials("R5", "every byte of packs", quick=200, full=len(places)) as run:
        if run.wanted < len(places):
            places = run.moment.sample(places, run.wanted)
        with rblstore.open(store) as repo:
            assert repo.fsck().ok
            for number in run:
                name, at = places[number]
                path, data = store / ".rbl" / name, bytearray(files[name])
                data[at] ^= 1 << run.moment.randrange(8)
                path.write_bytes(data)
                repo._store.contents.close()
                named: set[Any] = {damage.object for damage in repo.fsck().damages}
                pack = Path(name).stem
                assert pack in named or named & story.held[pack], (name, at)
                path.write_bytes(files[name])
        repo.close()
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).ok
