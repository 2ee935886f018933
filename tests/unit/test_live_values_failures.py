"""A write into a live model that fails half way: all or nothing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from live_shelf import Shelf, digests, fine_tune, make_shelf, places_of, small_shelf

import rblstore
from rblstore.objects.content_records import StoredTensor
from rblstore.operations.live_places import LivePlaces
from rblstore.operations.live_values import CACHE_BYTES, LiveBrokenError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def shelf(folder: Path) -> Iterator[Shelf]:
    made = small_shelf(folder)
    yield made
    made.repo.close()


def damage(shelf: Shelf, key: StoredTensor) -> None:
    """Flips a bit of where a content is stored."""
    stored = shelf.store.contents.stored([key.content])[0]
    path = shelf.store.folder / "packs" / _pack_file(shelf, stored.location.pack)
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
    with path.open("r+b") as file:
        file.seek(stored.frames[0].offset)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _pack_file(shelf: Shelf, pack: str) -> Path:
    return next(path for path in (shelf.store.folder / "packs").rglob("*") if path.is_file() and pack in path.name)


@pytest.fixture
def copied(shelf: Shelf, folder: Path, tmp_path: Path) -> Iterator[Shelf]:
    """The same repository, to be damaged."""
    shutil.copytree(folder / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        yield Shelf(repo, shelf.model)


@pytest.mark.parametrize("cache_bytes", [0, CACHE_BYTES])
def test_damage_is_found_and_leaves_the_model_as_it_was(cache_bytes: int, copied: Shelf) -> None:
    live = copied.repo.load("main")
    values = copied.values(live, cache_bytes)
    base, tuned = (values.of(copied.composition(name), "adapters") for name in ("main", "tuned"))
    key = tuned["model.norm.weight"]
    assert isinstance(key, StoredTensor)
    damage(copied, key)
    before, where = digests(live), places_of(live)
    with pytest.raises(rblstore.CorruptError):
        values.write(base, tuned)
    assert digests(live) == before
    assert places_of(live) == where
    assert values.differing(base) == []


def test_damage_of_what_lies_beneath_a_merged_behavior(copied: Shelf) -> None:
    live = copied.repo.load("main")
    values = copied.values(live, 0)
    base, merged = (values.of(copied.composition(name), "merged") for name in ("main", "lora"))
    values.write(base, merged)
    before = digests(live)
    key = base["model.layers.1.self_attn.v_proj.weight"]
    assert isinstance(key, StoredTensor)
    damage(copied, key)
    with pytest.raises(LiveBrokenError, match=r"layers\.1\.self_attn\.v_proj"):
        # Neither the stored value nor the sum that is computed from it can be had.
        values.write(merged, base)
    staged = copied.values(live, CACHE_BYTES)
    wanted = staged.of(copied.composition("main"), "merged")
    others = {name: merged[name] for name in merged if name != "model.layers.1.self_attn.v_proj.weight"}
    values.write({name: wanted[name] for name in others}, others)
    now = digests(live)
    with pytest.raises(rblstore.CorruptError):
        staged.write(merged, wanted)  # all of it is read before anything is written
    assert digests(live) == now
    del now["model.layers.1.self_attn.v_proj.weight"], before["model.layers.1.self_attn.v_proj.weight"]
    assert now == before


class Interruption(BaseException):
    """Nobody catches it by name."""


@pytest.mark.parametrize(
    ("cache_bytes", "form", "at"),
    [
        (0, "adapters", 0),
        (0, "adapters", 7),
        (0, "merged", 1),
        (CACHE_BYTES, "adapters", 7),
        (CACHE_BYTES, "merged", 3),
    ],
)
def test_an_interruption_half_way_leaves_the_model_as_it_was(
    cache_bytes: int, form: str, at: int, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = shelf.repo.load("main", dtype=torch.float32)  # so that no tensor takes the stored bytes as they are
    values = shelf.values(live, cache_bytes)
    target = "tuned" if form == "adapters" else "lora"
    base = values.of(shelf.composition("main"), "adapters")
    after = values.of(shelf.composition(target), form)  # type: ignore[arg-type]
    before, done = digests(live), 0
    assign = LivePlaces.assign

    def interrupted(self: LivePlaces, *arguments: Any) -> None:
        nonlocal done
        done += 1
        assign(self, *arguments)
        if done == at + 1:
            raise Interruption

    monkeypatch.setattr(LivePlaces, "assign", interrupted)
    with pytest.raises(Interruption):
        values.write(base, after)
    assert done > at
    assert digests(live) == before


def test_an_interruption_gives_other_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.llama(dtype=torch.bfloat16)
    shelf = make_shelf(tmp_path, model, {"tuned": fine_tune(model, 100)})
    live = shelf.repo.load("main")
    before, where, shown = digests(live), places_of(live), repr(live)
    for cache_bytes in (0, CACHE_BYTES):
        values = shelf.values(live, cache_bytes)
        base, tuned = (values.of(shelf.composition(revision), "adapters") for revision in ("main", "tuned"))
        replace = LivePlaces.replace

        def interrupted(self: LivePlaces, *arguments: Any, replace: Any = replace) -> None:
            replace(self, *arguments)
            monkeypatch.undo()
            raise Interruption

        monkeypatch.setattr(LivePlaces, "replace", interrupted)
        with pytest.raises(Interruption):
            values.write(base, tuned)
        assert (digests(live), places_of(live), repr(live)) == (before, where, shown)
        assert live.config.vocab_size == tiny_models.VOCABULARY
    shelf.repo.close()


def test_what_cannot_be_put_back_is_named(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    live = shelf.repo.load("main")
    values = shelf.values(live)
    base, merged = (values.of(shelf.composition(name), "merged") for name in ("main", "lora"))
    assign = LivePlaces.assign

    def fails(self: LivePlaces, place: Any, value: torch.Tensor) -> None:
        assign(self, place, value)
        if place.live_name == "model.layers.0.self_attn.q_proj.weight":
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(LivePlaces, "assign", fails)
    with pytest.raises(LiveBrokenError, match=r"layers\.0\.self_attn\.q_proj") as caught:
        values.write(base, merged)
    assert caught.value.object == "model.layers.0.self_attn.q_proj.weight"
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    values.write({}, base)
    assert values.differing(base) == []
