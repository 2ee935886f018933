"""The files of an identity with overlays on it: as committed where they can be, by rule elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import pytest

from rblstore.checkpoints.checkout_layout import ComposedWeights, LayoutCollisionError
from rblstore.checkpoints.composed_layout import ComposedCheckpoint, compose_layout
from rblstore.checkpoints.composition_ground import LogicalState
from rblstore.checkpoints.overlay_effects import overlay_effects
from rblstore.checkpoints.safetensors_header import encode_header
from rblstore.checkpoints.stored_checkpoint import StoredCheckpoint
from rblstore.errors import CorruptError
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, NamedTensor, StoredTensor
from rblstore.objects.ids import ContentId, FileManifestId

INDEX = "model.safetensors.index.json"


def content(text: str) -> ContentId:
    return ContentId(hashlib.sha256(text.encode()).hexdigest())


def tensor(text: str, *shape: int, dtype: str = "F32") -> StoredTensor:
    return StoredTensor(dtype, shape or (2,), content(text))


def checkpoint(
    weights: Mapping[str, Mapping[str, StoredTensor]],
    *,
    index: bool = False,
    safetensors: Mapping[str, str] | None = None,
    **files: str,
) -> StoredCheckpoint:
    """A checkpoint of weight files, each of tensors in order; names of other files with ``__`` for the dot."""
    manifests, entries = {}, []
    for path, tensors in weights.items():
        text = f"{path}:{sorted(tensors.items())}"
        listed = tuple(NamedTensor(name, one) for name, one in tensors.items())
        manifests[path] = FileManifest(content("header " + text), listed)
        size = 100 + sum(one.size for one in tensors.values())
        entries.append(FileEntry(path, content(text), size, FileManifestId(content("manifest " + text))))
    for path, text in (safetensors or {}).items():
        manifests[path] = FileManifest(content(text), ())
        entries.append(FileEntry(path, content(text), 10, FileManifestId(content("manifest " + text))))
    data = None
    if index:
        total = sum(one.size for tensors in weights.values() for one in tensors.values())
        placed = {name: path for path, tensors in weights.items() for name in tensors}
        told = {"metadata": {"total_size": total, "total_parameters": 1, "who": "x"}, "weight_map": placed, "more": [1]}
        data = json.dumps(told).encode()
        entries.append(FileEntry(INDEX, content(data.decode()), len(data)))
    entries += [FileEntry(path.replace("__", "."), content(text), len(text)) for path, text in files.items()]
    return StoredCheckpoint(tuple(sorted(entries, key=lambda entry: entry.path)), manifests, data)


def overlay(made: StoredCheckpoint, base: StoredCheckpoint) -> Behavior:
    state = LogicalState(dict(base.tensors), dict(base.beside))
    return Behavior("overlay", made.files, overlay_effects("ft", made.tensors, made.beside, state))


def composed(
    identity: StoredCheckpoint, *made: StoredCheckpoint, on: StoredCheckpoint | None = None
) -> ComposedCheckpoint:
    overlays = [(f"o{at}", overlay(one, on or identity)) for at, one in enumerate(made)]
    return compose_layout(identity, overlays, made[-1] if made else None, lambda manifest: {"format": "pt"})


BASE = checkpoint(
    {"model.safetensors": {"b": tensor("b"), "a": tensor("a"), "c": tensor("c")}}, config__json="c", tokenizer__json="t"
)
SHARDS = checkpoint(
    {
        "model-1.safetensors": {"b": tensor("b")},
        "model-2.safetensors": {"a": tensor("a")},
        "model-3.safetensors": {"c": tensor("c")},
    },
    index=True,
    config__json="c",
)


def test_an_identity_alone_is_what_it_was() -> None:
    for base in (BASE, SHARDS):
        assert composed(base).files == tuple((entry.path, entry) for entry in base.files)


def test_an_overlay_on_its_base_is_what_it_was() -> None:
    made = checkpoint({"model.safetensors": {"a": tensor("a1"), "d": tensor("d")}}, config__json="c1", new__txt="n")
    for base in (BASE, SHARDS):
        found = composed(base, made)
        assert found.files == tuple((entry.path, entry) for entry in made.files)
        assert found.weights == {"model.safetensors"}


def test_shards_over_a_single_file_are_what_they_were() -> None:
    made = checkpoint(
        {"x.safetensors": {"a": tensor("a1")}, "y.safetensors": {"b": tensor("b"), "c": tensor("c")}}, index=True
    )
    assert composed(BASE, made).files == tuple((entry.path, entry) for entry in made.files)


def other_base(base: StoredCheckpoint, **changed: StoredTensor) -> StoredCheckpoint:
    weights = {
        path: {one.name: changed.get(one.name, one.tensor) for one in base.manifests[path].tensors}
        for path in base.weights
    }
    return checkpoint(weights, index=base.index is not None, config__json="c", tokenizer__json="t")


def test_a_mixture_keeps_the_header_where_shapes_are_the_same() -> None:
    made = checkpoint(
        {"model.safetensors": {"a": tensor("a1"), "b": tensor("b"), "c": tensor("c")}},
        config__json="c1",
        tokenizer__json="t",
    )
    identity = other_base(BASE, c=tensor("c9"))
    found = dict(composed(identity, made, on=BASE).files)
    weights = found["model.safetensors"]
    assert isinstance(weights, ComposedWeights)
    assert weights.header == identity.manifests["model.safetensors"].header
    assert [(one.name, one.tensor) for one in weights.tensors] == [
        ("b", tensor("b")),
        ("a", tensor("a1")),
        ("c", tensor("c9")),
    ]
    assert weights.size == identity.files[1].size
    assert (found["config.json"].sha256, found["tokenizer.json"].sha256) == (content("c1"), content("t"))  # type: ignore[union-attr]


def test_a_mixture_in_shards() -> None:
    made = checkpoint(
        {"model.safetensors": {"a": tensor("a1", 3), "c": tensor("c"), "d": tensor("d", dtype="I64")}}, config__json="c"
    )
    identity = other_base(SHARDS, c=tensor("c9"))
    result = composed(identity, made, on=SHARDS)
    found = dict(result.files)
    assert result.weights == {"model-2.safetensors", "model-3.safetensors"}  # nothing was left in the first
    second, third, index = found["model-2.safetensors"], found["model-3.safetensors"], found[INDEX]
    assert isinstance(second, ComposedWeights)
    assert isinstance(third, ComposedWeights)
    assert second.header == encode_header({"a": ("F32", (3,))}, {"format": "pt"})
    # The new tensor is in the last file, and stands where the library puts the widest type.
    assert [one.name for one in third.tensors] == ["d", "c"]
    assert third.header == encode_header({"c": ("F32", (2,)), "d": ("I64", (2,))}, {"format": "pt"})
    assert third.size == len(third.header) + 16 + 8
    assert isinstance(index, bytes)
    assert json.loads(index) == {
        "metadata": {"total_size": 12 + 16 + 8, "total_parameters": 7, "who": "x"},
        "more": [1],
        "weight_map": {"a": "model-2.safetensors", "c": "model-3.safetensors", "d": "model-3.safetensors"},
    }


def test_an_index_that_is_still_true_stays() -> None:
    made = checkpoint({"model.safetensors": {"a": tensor("a1"), "b": tensor("b"), "c": tensor("c")}}, config__json="c")
    identity = other_base(SHARDS, c=tensor("c9"))
    found = dict(composed(identity, made, on=SHARDS).files)
    assert isinstance(found[INDEX], FileEntry)
    assert isinstance(found["model-1.safetensors"], FileEntry)
    assert isinstance(found["model-2.safetensors"], ComposedWeights)
    assert isinstance(found["model-3.safetensors"], FileEntry)


def test_files_of_two_overlays() -> None:
    base = BASE.manifests["model.safetensors"].tensors
    weights = {"model.safetensors": {one.name: one.tensor for one in base}}
    first = checkpoint(weights, config__json="c1", tokenizer__json="t", one__txt="1")
    second = checkpoint({"model.safetensors": {**weights["model.safetensors"], "a": tensor("a1")}}, config__json="c")
    found = dict(composed(BASE, first, second).files)
    assert {path: getattr(source, "sha256", None) for path, source in found.items() if path.endswith("txt")} == {
        "one.txt": content("1")
    }
    assert found["config.json"].sha256 == content("c1")  # type: ignore[union-attr]
    assert "tokenizer.json" not in found


def test_an_overlay_that_does_not_hold_what_it_writes_is_corrupt() -> None:
    made = checkpoint({"model.safetensors": {"a": tensor("a1"), "b": tensor("b"), "c": tensor("c")}}, config__json="c1")
    hollow = Behavior("overlay", (), overlay(made, BASE).effects)
    identity = other_base(BASE, c=tensor("c9"))
    with pytest.raises(CorruptError, match=r"config\.json"):
        compose_layout(identity, [("ft", hollow)], checkpoint({}), lambda manifest: None)


def test_files_that_loading_would_take_for_weights_are_refused() -> None:
    weights = {"a": tensor("a1"), "b": tensor("b"), "c": tensor("c")}
    stray = checkpoint({"model.safetensors": weights}, safetensors={"model-3.safetensors": "stray"}, config__json="c")
    with pytest.raises(LayoutCollisionError) as caught:
        composed(other_base(SHARDS, c=tensor("c9")), stray, on=SHARDS)
    assert caught.value.object == "model-3.safetensors"
    loose = checkpoint({"w.safetensors": {"b": tensor("b"), "a": tensor("a"), "c": tensor("c")}}, config__json="c")
    beside = checkpoint({"model.safetensors": weights}, safetensors={"extra.safetensors": "stray"}, config__json="c")
    with pytest.raises(LayoutCollisionError) as caught:
        composed(other_base(loose, c=tensor("c9")), beside, on=loose)
    assert caught.value.object == "extra.safetensors"
