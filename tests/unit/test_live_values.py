"""What a live model's own tensors have to hold, and writing it: bit for bit, in place, all or nothing."""

from __future__ import annotations

import copy
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import rblstore
from rblstore.checkpoints.merging import CannotMergeError
from rblstore.checkpoints.saving import live_tensor_digest
from rblstore.live.binding import UnmappedTensorError
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.live_places import LivePlaces, TiedTensorsError, UnwritableTensorError
from rblstore.operations.live_values import CACHE_BYTES, LiveBrokenError, LiveValues
from rblstore.operations.value_cache import MergedValue, form_of

PLAIN = ("lora", "rslora", "rank_pattern")
BY_PEFT = ("dora", "ia3", "modules_to_save", "bias_all", "lokr", "pissa")


@dataclass(frozen=True)
class Shelf:
    """A repository whose branches are named after what lies on the base."""

    repo: Any
    model: Any

    @property
    def store(self) -> Any:
        return self.repo._store

    def composition(self, revision: str) -> Composition:
        commit = self.store.record(self.repo.resolve(revision), Commit)
        return self.store.record(commit.composition, Composition)  # type: ignore[no-any-return]

    def values(self, live: Any, cache_bytes: int = CACHE_BYTES) -> LiveValues:
        return LiveValues(self.store, live, cache_bytes=cache_bytes)


def fine_tune(model: Any, rows: int | None = None) -> Any:
    tuned = copy.deepcopy(model)
    if rows is not None:
        tuned.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return tuned


def make_shelf(folder: Path, model: Any, behaviors: dict[str, Any]) -> Shelf:
    repo = rblstore.init(folder / "store")
    repo.commit("base", identity=tiny_models.save(model, folder / "base"))
    for name, source in behaviors.items():
        repo.switch(name, create=True, start="main")
        repo.commit(name, behaviors={name: source})
    return Shelf(repo, model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def shelf(folder: Path) -> Iterator[Shelf]:
    model = tiny_models.llama(dtype=torch.bfloat16)
    behaviors = {kind: tiny_models.save_adapter(model, folder / kind, kind) for kind in (*PLAIN, *BY_PEFT)}
    behaviors["other"] = tiny_models.save_adapter(model, folder / "other", "lora", seed=2)
    behaviors["prompt"] = tiny_models.save_adapter(model, folder / "prompt", "prompt_tuning")
    made = make_shelf(folder, model, {**behaviors, "tuned": fine_tune(model)})
    yield made
    made.repo.close()


def digests(model: Any) -> dict[str, str]:
    return {name: live_tensor_digest(tensor) for name, tensor in model.state_dict().items()}


def places_of(model: Any) -> dict[str, tuple[int, int]]:
    return {name: (id(one), one.data_ptr()) for name, one in model.named_parameters()}


@pytest.mark.parametrize("kind", [*PLAIN, *BY_PEFT])
def test_merged_is_what_a_merged_checkout_holds_and_the_way_back_is_exact(
    kind: str, shelf: Shelf, tmp_path: Path
) -> None:
    live = shelf.repo.load("main")
    before, where = digests(live), places_of(live)
    shelf.repo.checkout(kind, tmp_path / "out", form="merged")
    expected = digests(rblstore.load_checkout(tmp_path / "out"))
    for cache_bytes in (0, 10_000, CACHE_BYTES) if kind == "lora" else (CACHE_BYTES,):
        values = shelf.values(live, cache_bytes)
        base = values.of(shelf.composition("main"), "adapters")
        merged = values.of(shelf.composition(kind), "merged")
        assert values.differing(base) == []
        changed = {name for name in merged if merged[name] != base[name]}

        values.write(base, merged)
        assert digests(live) == expected
        assert values.differing(merged) == []
        differing = values.differing(base)
        assert differing
        assert set(differing) <= changed
        values.write(merged, base)
        assert digests(live) == before
        assert places_of(live) == where
        assert values.cached_bytes <= cache_bytes
        assert (values.cached_bytes > 0) == (cache_bytes > 0)


@pytest.mark.parametrize("cache_bytes", [0, 7_000, CACHE_BYTES])
def test_cycles_of_two_behaviors_leave_no_bit_changed(cache_bytes: int, shelf: Shelf) -> None:
    live = shelf.repo.load("main")
    values = shelf.values(live, cache_bytes)
    before = digests(live)
    base, *merged = (values.of(shelf.composition(name), "merged") for name in ("main", "lora", "other"))
    seen = []
    for cycle in range(6):
        values.write(base, merged[cycle % 2])
        seen.append(digests(live))
        values.write(merged[cycle % 2], base)
        assert digests(live) == before
    assert seen[0] != seen[1]
    assert seen == seen[:2] * 3
    values.write(merged[0], merged[0])  # nothing differs, so nothing is touched, whatever the model holds
    assert digests(live) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("cache_bytes", [0, CACHE_BYTES])
def test_a_model_in_any_type_holds_what_loading_gives(cache_bytes: int, dtype: torch.dtype, shelf: Shelf) -> None:
    live = shelf.repo.load("main", dtype=dtype)
    values = shelf.values(live, cache_bytes)
    base, tuned = (values.of(shelf.composition(name), "adapters") for name in ("main", "tuned"))
    before = digests(live)
    assert values.differing(base) == []
    values.write(base, tuned)
    assert digests(live) == digests(shelf.repo.load("tuned", dtype=dtype))
    assert values.differing(tuned) == []
    values.write(tuned, base)
    assert digests(live) == before


def test_equal_values_have_equal_keys_and_of_gives_a_copy(shelf: Shelf) -> None:
    values = shelf.values(shelf.repo.load("main"))
    composition = shelf.composition("lora")
    one, again = values.of(composition, "merged"), values.of(composition, "merged")
    fresh = shelf.values(shelf.repo.load("main")).of(shelf.composition("lora"), "merged")
    assert one == again == fresh
    assert {hash(one[name]) == hash(fresh[name]) for name in one} == {True}
    one.clear()
    assert values.of(composition, "merged") == again
    assert values.of(composition, "adapters") == values.of(shelf.composition("main"), "adapters")
    assert values.of(shelf.composition("other"), "merged") != again
    assert {type(key) for key in again.values()} == {StoredTensor, MergedValue}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kept", [True, False])
def test_one_bit_is_a_difference(dtype: torch.dtype, kept: bool, shelf: Shelf) -> None:
    live = shelf.repo.load("main", dtype=dtype)
    values = shelf.values(live)
    base, tuned = (values.of(shelf.composition(name), "adapters") for name in ("main", "tuned"))
    if kept:
        values.write(base, tuned)
        values.write(tuned, base)
    name = "model.layers.0.mlp.up_proj.weight"
    place = live.get_parameter(name)
    width = {2: torch.int16, 4: torch.int32}[place.element_size()]
    with torch.no_grad():
        place.view(width)[3, 4] ^= 1
    assert values.differing(base) == [name]
    with torch.no_grad():
        place.view(width)[3, 4] ^= 1
    assert values.differing(base) == []
    live.get_parameter("model.norm.weight").data = torch.zeros(3, dtype=dtype)
    assert values.differing(base) == ["model.norm.weight"]


def test_autograd_sees_a_write_and_optimizers_keep_their_parameters(shelf: Shelf) -> None:
    for cache_bytes in (0, CACHE_BYTES):
        live = shelf.repo.load("main")
        live.requires_grad_(True)
        values = shelf.values(live, cache_bytes)
        base, tuned = (values.of(shelf.composition(name), "adapters") for name in ("main", "tuned"))
        versions = {name: one._version for name, one in live.named_parameters()}
        values.write(base, tuned)
        assert all(one._version > versions[name] for name, one in live.named_parameters())
        assert all(one.requires_grad and one.is_leaf for one in live.parameters())


def test_memory_that_is_not_one_run_of_bytes_is_written_as_well(shelf: Shelf) -> None:
    live = shelf.repo.load("main")
    place = live.get_parameter("model.layers.0.self_attn.q_proj.weight")
    place.data = place.data.t().contiguous().t()
    assert not place.is_contiguous()
    for cache_bytes in (0, CACHE_BYTES):
        values = shelf.values(live, cache_bytes)
        base, tuned = (values.of(shelf.composition(name), "adapters") for name in ("main", "tuned"))
        address = place.data_ptr()
        values.write(base, tuned)
        assert values.differing(tuned) == []
        values.write(tuned, base)
        assert values.differing(base) == []
        assert (place.data_ptr(), place.is_contiguous()) == (address, False)


MODELS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "tied, more tokens": (lambda: tiny_models.llama(tied=True), 104),
    "tied, fewer tokens": (lambda: tiny_models.llama(tied=True, dtype=torch.bfloat16), 92),
    "apart, more tokens": (lambda: tiny_models.llama(dtype=torch.bfloat16), 100),
    "an encoder's head": (lambda: tiny_models.bert("BertForMaskedLM"), 100),
    "fused experts": (lambda: tiny_models.mixtral(dtype=torch.bfloat16), None),
    "stored transposed": (tiny_models.gpt2, 97),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_fine_tune_comes_and_goes(name: str, tmp_path: Path) -> None:
    make, rows = MODELS[name]
    model = make()
    shelf = make_shelf(tmp_path, model, {"tuned": fine_tune(model, rows)})
    live = shelf.repo.load("main")
    fresh = {revision: shelf.repo.load(revision) for revision in ("main", "tuned")}
    objects = [id(one) for one in live.state_dict(keep_vars=True).values()]
    for cache_bytes in (0, CACHE_BYTES):
        values = shelf.values(live, cache_bytes)
        base, tuned = (values.of(shelf.composition(revision), "adapters") for revision in ("main", "tuned"))
        for before, after, revision in ((base, tuned, "tuned"), (tuned, base, "main")):
            values.write(before, after)
            assert values.differing(after) == []
            assert digests(live) == digests(fresh[revision])
            assert torch.equal(tiny_models.outputs(live), tiny_models.outputs(fresh[revision]))
            assert repr(live) == repr(fresh[revision])
            assert live.config.vocab_size == fresh[revision].config.vocab_size
    assert [id(one) for one in live.state_dict(keep_vars=True).values()] == objects
    shelf.repo.close()


def test_a_module_that_is_not_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    tuned = copy.deepcopy(net)
    with torch.no_grad():
        tuned[0].weight.add_(1.0)
        tuned[1].num_batches_tracked.add_(7)
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=net)
        repo.commit("tuned", behaviors={"tuned": tuned})
        shelf = Shelf(repo, net)
        values = shelf.values(net)
        base, after = (values.of(shelf.composition(revision), "merged") for revision in ("HEAD~1", "HEAD"))
        before = digests(net)
        values.write(base, after)
        assert digests(net) == digests(tuned)
        values.write(after, base)
        assert digests(net) == before


def test_what_has_no_place_or_cannot_be_merged_is_refused_before_anything_is_touched(
    shelf: Shelf, tmp_path: Path
) -> None:
    live = shelf.repo.load("main")
    values = shelf.values(live)
    with pytest.raises(CannotMergeError):
        values.of(shelf.composition("prompt"), "merged")
    smaller = tiny_models.llama(dtype=torch.bfloat16, layers=1)
    with pytest.raises(UnmappedTensorError, match=r"layers\.1"):
        shelf.values(smaller).of(shelf.composition("main"), "adapters")
    with torch.device("meta"):
        hollow = copy.deepcopy(live).to("meta")
    there = shelf.values(hollow)
    nowhere = there.of(shelf.composition("main"), "adapters")
    with pytest.raises(UnwritableTensorError):
        there.differing(nowhere)
    tied = tiny_models.llama(tied=True, dtype=torch.bfloat16)
    bound = shelf.values(tied)
    wanted = bound.of(shelf.composition("main"), "adapters")  # stored apart
    before = digests(tied)
    with pytest.raises(TiedTensorsError, match="lm_head"):
        bound.write({}, wanted)
    assert digests(tied) == before


def test_the_cache_keeps_what_was_used_last_within_its_bound(shelf: Shelf) -> None:
    live = shelf.repo.load("main")
    before = shelf.values(live)
    base, one, other = (before.of(shelf.composition(name), "merged") for name in ("main", "lora", "other"))
    touched = sum(form_of(base[name]).size for name in base if base[name] != one[name])
    values = shelf.values(live, touched * 2)
    for merged in (one, other, one):
        values.write(base, merged)
        values.write(merged, base)
        assert touched <= values.cached_bytes <= touched * 2
    before.write(base, one)
    assert before.cached_bytes == touched * 2
    before.clear()
    assert before.cached_bytes == 0
    before.write(one, base)
    assert before.differing(base) == []


# -- what goes wrong half way ---------------------------------------------------------------------------------------


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
