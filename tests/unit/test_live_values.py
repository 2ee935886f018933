"""What a live model's own tensors have to hold, and writing it: bit for bit, in place, all or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from live_shelf import BY_PEFT, PLAIN, Shelf, digests, fine_tune, make_shelf, places_of, small_shelf

import rblstore
from rblstore.checkpoints.merging import CannotMergeError
from rblstore.live.binding import UnmappedTensorError
from rblstore.objects.content_records import StoredTensor
from rblstore.operations.live_places import TiedTensorsError, UnwritableTensorError
from rblstore.operations.live_values import CACHE_BYTES
from rblstore.operations.value_cache import MergedValue, form_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def shelf(folder: Path) -> Iterator[Shelf]:
    made = small_shelf(folder)
    yield made
    made.repo.close()


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


def test_equal_values_have_equal_keys_and_nobody_changes_them(shelf: Shelf) -> None:
    values = shelf.values(shelf.repo.load("main"))
    composition = shelf.composition("lora")
    one, again = values.of(composition, "merged"), values.of(composition, "merged")
    fresh = shelf.values(shelf.repo.load("main")).of(shelf.composition("lora"), "merged")
    assert one == again == fresh
    assert {hash(one[name]) == hash(fresh[name]) for name in one} == {True}
    with pytest.raises(TypeError):
        one["model.norm.weight"] = one["lm_head.weight"]  # type: ignore[index]
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
