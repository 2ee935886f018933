"""What loose files are by digest, and what they resemble; from stored models that are made by hand, without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import Tensor

import rblstore
from rblstore.checkpoints.merging import read_floats, write_floats
from rblstore.errors import InputError
from rblstore.operations.identify_result import IdentifiedModel

SIDE, ROWS = 96, 288
NAMES = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(2) for part in ("q", "v")]


def floats(tensor: Tensor) -> Any:
    return read_floats(tensor.data, tensor.dtype, tensor.shape)


def stored(values: Any, dtype: str) -> Tensor:
    return Tensor(dtype, values.shape, write_floats(values.astype(np.float32), dtype))


def drawn(seed: int, *shape: int, size: float = 0.03) -> Any:
    return np.random.default_rng(seed).normal(0, size, shape)


def base_tensors(dtype: str = "BF16", seed: int = 0) -> dict[str, Tensor]:
    """An embedding, four square matrices and a norm."""
    found = {"model.embed_tokens.weight": stored(drawn(seed, ROWS, SIDE), dtype)}
    found |= {name: stored(drawn(seed + 1 + at, SIDE, SIDE), dtype) for at, name in enumerate(NAMES)}
    return found | {"model.norm.weight": stored(1 + drawn(seed + 9, SIDE), dtype)}


def write_model(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    tiny.write_safetensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": ROWS}))
    return folder


def adapter_tensors(seed: int, parts: str = "qv", rank: int = 4, size: float = 0.05) -> dict[str, Tensor]:
    found = {}
    for layer in range(2):
        for at, part in enumerate(parts):
            number = 1000 * seed + 10 * layer + 2 * at
            found[tiny.adapter_name(layer, part, "A")] = stored(drawn(number, rank, SIDE, size=size), "F32")
            found[tiny.adapter_name(layer, part, "B")] = stored(drawn(number + 1, SIDE, rank, size=size), "F32")
    return found


def write_lora(folder: Path, seed: int, parts: str = "qv", rank: int = 4) -> Path:
    tiny.write_safetensors(folder / "adapter_model.safetensors", adapter_tensors(seed, parts, rank))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    config |= {"target_modules": [f"{part}_proj" for part in parts]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(
    base: Mapping[str, Tensor], weights: Mapping[int, float], dtype: str, parts: str = "qv"
) -> dict[str, Tensor]:
    """A base with adapters merged in float64, rounded once; by the adapters' seeds."""
    found = {name: stored(floats(tensor), dtype) for name, tensor in base.items()}
    for layer in range(2):
        for part in parts:
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            total = floats(base[name]).astype(np.float64)
            for seed, weight in weights.items():
                factors = adapter_tensors(seed)
                a, b = (floats(factors[tiny.adapter_name(layer, part, which)]).astype(np.float64) for which in "AB")
                total += weight * 2 * (b @ a)
            found[name] = stored(total, dtype)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base <- warm (adapter) <- cold (adapter), and elsewhere tuned (overlay on base) and another base."""
    folder = tmp_path_factory.mktemp("identify")
    base = base_tensors()
    write_model(folder / "base", base)
    write_lora(folder / "warm", 1)
    write_lora(folder / "cold", 2)
    tuned = base | {NAMES[0]: stored(floats(base[NAMES[0]]) + drawn(77, SIDE, SIDE, size=0.003), "BF16")}
    write_model(folder / "tuned", tuned)
    write_model(folder / "other", base_tensors(seed=500))
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base", author="Ada")
        repo.commit("warm", behaviors={"warm": folder / "warm"}, author="Ada")
        repo.commit("cold", behaviors={"cold": folder / "cold"}, author="Ada")
        repo.create_branch("tuned", "HEAD~2")
        repo.commit("tuned", behaviors={"tuned": folder / "tuned"}, branch="tuned", author="Ada")
        repo.checkout("HEAD", folder / "adapters")
        repo.checkout("HEAD", folder / "merged", form="merged")
        repo.checkout("tuned", folder / "overlay")
    return folder


@pytest.fixture(scope="module")
def repo(made: Path) -> Any:
    with rblstore.open(made / "store") as repo:
        yield repo


def commit(repo: Any, revision: str) -> str:
    return str(repo.show(revision).id)


def only(repo: Any, path: Path) -> IdentifiedModel:
    (model,) = repo.identify(path).models
    return model


def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    return tiny.write_safetensors(path / "weights.safetensors", tensors)


# -- what it is ---------------------------------------------------------------------------------------------------


def test_a_byte_copy_is_the_identity_whatever_its_name(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "base" / "model.safetensors", tmp_path / "a-blob")
    found = repo.identify(tmp_path / "a-blob")
    (model,) = found.models
    (match,) = model.exact
    assert (model.verdict, match.role, match.name, match.how, match.whole) == (
        "exact", "identity", "base", "files", True,
    )  # fmt: skip
    assert match.commits.count == 4
    assert match.commits.first == found.commits.first == commit(repo, "main~2")
    assert found.commits.count == 1
    assert found.files[0].holders == (match.id,)
    assert model.resembling == ()
    assert not found.unknown


def test_shards_and_other_names_are_the_same_tensors(repo: Any, tmp_path: Path) -> None:
    names = list(base_tensors())
    for number, part in enumerate((names[:2], names[2:])):
        tensors = {name.replace("model.", "text.model."): base_tensors()[name] for name in part}
        tiny.write_safetensors(tmp_path / f"part-{number}.safetensors", tensors)
    found = repo.identify(tmp_path)
    (match,) = found.models[0].exact
    assert (match.how, match.whole, match.renamed) == ("tensors", True, len(names))
    assert found.commits.first == commit(repo, "main~2")
    assert [file.holders for file in found.files] == [(), ()]


def test_one_shard_is_a_part_and_no_commit(repo: Any, tmp_path: Path) -> None:
    found = repo.identify(write(tmp_path, {NAMES[1]: base_tensors()[NAMES[1]]}))
    assert {(match.name, match.whole) for match in found.models[0].exact} == {("base", False), ("tuned", False)}
    assert found.commits.count == 0
    assert not found.unknown


def test_a_checkout_is_its_commit(repo: Any, made: Path) -> None:
    found = repo.identify(made / "adapters")
    assert [(model.path, model.exact[0].name) for model in found.models] == [
        (".", "base"), ("behaviors/cold", "cold"), ("behaviors/warm", "warm"),
    ]  # fmt: skip
    assert found.commits.newest == (commit(repo, "main"),)


def test_a_checkout_without_one_adapter_is_another_commit(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "adapters", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "behaviors" / "cold")
    assert repo.identify(tmp_path / "out").commits.newest == (commit(repo, "main~1"),)
    shutil.rmtree(tmp_path / "out" / "behaviors" / "warm")
    shutil.copytree(made / "cold", tmp_path / "out" / "behaviors" / "cold")
    assert repo.identify(tmp_path / "out").commits.count == 0  # nobody composed just these


def test_a_fine_tune_that_was_committed_is_its_overlay(repo: Any, made: Path) -> None:
    for folder in ("overlay", "tuned"):
        found = repo.identify(made / folder)
        assert [(match.role, match.name) for match in found.models[0].exact] == [("behavior", "tuned")]
        assert found.commits.newest == (commit(repo, "tuned"),)


def test_a_merged_checkout_is_its_commit(repo: Any, made: Path, tmp_path: Path) -> None:
    found = repo.identify(made / "merged")
    (match,) = found.models[0].exact
    assert (match.role, match.how, match.whole) == ("composition", "merged", True)
    assert match.commits.newest == found.commits.newest == (commit(repo, "main"),)
    # One bit of one tensor, and it is that no more.
    tensors = load_file(made / "merged" / "model.safetensors")
    tensors[NAMES[-1]].view(torch.uint8)[5, 5] ^= 1
    save_file(tensors, tmp_path / "model.safetensors")
    model = only(repo, tmp_path)
    assert model.exact == ()
    assert model.verdict == "merged"


def test_an_adapter_beside_other_weights_is_a_model_of_its_own(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "base" / "model.safetensors", tmp_path)
    shutil.copy(made / "warm" / "adapter_model.safetensors", tmp_path)
    found = repo.identify(tmp_path)
    assert [(one.path, one.exact[0].name) for one in found.models] == [
        (".", "base"), ("adapter_model.safetensors", "warm"),
    ]  # fmt: skip
    assert found.commits.newest == (commit(repo, "main~1"),)


def test_files_of_the_same_names_are_models_of_their_own(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "base" / "model.safetensors", tmp_path / "one.safetensors")
    shutil.copy(made / "tuned" / "model.safetensors", tmp_path / "two.safetensors")
    found = repo.identify(tmp_path)
    assert [(one.path, one.exact[0].name) for one in found.models] == [
        ("one.safetensors", "base"), ("two.safetensors", "tuned"),
    ]  # fmt: skip
    assert found.commits.count == 0


def test_settings_that_were_changed_beside_the_same_weights_are_named(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "adapters", tmp_path / "out")
    for path in ("config.json", "behaviors/warm/adapter_config.json"):
        (tmp_path / "out" / path).write_text("{}")
    found = {model.path: model.exact[0].differing for model in repo.identify(tmp_path / "out").models}
    assert found == {".": ("config.json",), "behaviors/warm": ("adapter_config.json",), "behaviors/cold": ()}


def test_layers_that_changed_places_are_another_model(repo: Any, tmp_path: Path) -> None:
    base = base_tensors()
    swapped = base | {NAMES[0]: base[NAMES[2]], NAMES[2]: base[NAMES[0]]}
    for number, tensors in enumerate((swapped, {f"text.{name}": one for name, one in swapped.items()})):
        model = only(repo, write(tmp_path / str(number), tensors))
        assert model.exact == ()
        like = next(one for one in model.resembling if one.name == "base")
        assert (like.equal, like.unlike) == (4, 2)


def test_a_layer_that_was_put_in_twice_is_another_model(repo: Any, tmp_path: Path) -> None:
    base = base_tensors()
    twice = base | {name.replace("layers.0", "layers.2"): base[name] for name in NAMES[:2]}
    assert only(repo, write(tmp_path / "twice", twice)).verdict == "relative"
    # A tied head that was saved beside the embedding it is tied to is nothing new.
    tied = base | {"lm_head.weight": base["model.embed_tokens.weight"]}
    (match,) = only(repo, write(tmp_path / "tied", tied)).exact
    assert (match.name, match.whole) == ("base", True)


# -- what it resembles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_another_element_type_is_a_cast(repo: Any, tmp_path: Path, dtype: str) -> None:
    model = only(repo, write(tmp_path, {n: stored(floats(t), dtype) for n, t in base_tensors().items()}))
    (like,) = [one for one in model.resembling if one.kind == "cast"]
    assert (model.verdict, model.exact, like.name) == ("cast", (), "base")
    assert (like.equal, like.cast, like.from_dtypes, like.to_dtypes) == (0, 6, ("BF16",), (dtype,))
    assert model.resembling[0] == like
    assert like.commits.first == commit(repo, "main~2")


def test_a_tied_head_that_was_cast_too_is_a_cast(repo: Any, tmp_path: Path) -> None:
    tensors = {name: stored(floats(one), "F16") for name, one in base_tensors().items()}
    model = only(repo, write(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert (model.verdict, model.resembling[0].cast) == ("cast", 7)


def test_a_few_trained_rows_are_no_merged_adapter(repo: Any, tmp_path: Path) -> None:
    base = base_tensors()
    embedding = floats(base["model.embed_tokens.weight"]).copy()
    embedding[-3:] = drawn(3, 3, SIDE)
    model = only(repo, write(tmp_path, base | {"model.embed_tokens.weight": stored(embedding, "BF16")}))
    assert model.verdict == "relative"


def test_a_cast_is_compared_to_the_last_value(repo: Any, tmp_path: Path) -> None:
    tensors = {n: stored(floats(t), "F16") for n, t in base_tensors().items()}
    changed = bytearray(tensors["model.embed_tokens.weight"].data)
    changed[2 * 70 * SIDE] ^= 1  # in a row that no sample takes
    tensors["model.embed_tokens.weight"] = Tensor("F16", (ROWS, SIDE), bytes(changed))
    model = only(repo, write(tmp_path, tensors))
    assert model.verdict == "relative"
    (like, *_) = model.resembling
    assert (like.cast, like.close) == (5, 1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_an_adapter_that_others_merged_is_named(repo: Any, tmp_path: Path, dtype: str) -> None:
    model = only(repo, write(tmp_path, merged(base_tensors(), {1: 1.0}, dtype)))
    assert (model.verdict, model.exact) == ("merged", ())
    like = model.resembling[0]
    assert like.name == "base"
    assert like.difference is not None
    assert (like.difference.tensors, like.difference.sampled, like.difference.rank) == (4, 4, 4)
    assert like.difference.energy > 0.9
    (behavior,) = like.difference.behaviors
    assert behavior.name == "warm"
    assert behavior.weight == pytest.approx(1, abs=0.02)
    assert behavior.cosine > 0.95
    assert like.difference.explained > 0.9
    assert like.difference.commits.newest == (commit(repo, "main~1"),)


def test_two_adapters_with_weights_are_told_apart(repo: Any, tmp_path: Path) -> None:
    model = only(repo, write(tmp_path, merged(base_tensors(), {1: 1.5, 2: -0.5}, "F32")))
    assert model.resembling[0].difference is not None
    found = {one.name: one.weight for one in model.resembling[0].difference.behaviors}
    assert found == pytest.approx({"warm": 1.5, "cold": -0.5}, abs=0.01)
    assert model.resembling[0].difference.rank == 8
    assert model.resembling[0].difference.commits.newest == (commit(repo, "main"),)


def test_an_adapter_that_is_not_stored_is_a_thin_difference_of_nothing(repo: Any, tmp_path: Path) -> None:
    model = only(repo, write(tmp_path, merged(base_tensors(), {3: 1.0}, "BF16")))
    difference = model.resembling[0].difference
    assert difference is not None
    assert (model.verdict, difference.rank, difference.behaviors, difference.commits.count) == ("merged", 4, (), 0)


def test_a_fine_tune_is_a_relative_with_the_share_that_is_equal(repo: Any, tmp_path: Path) -> None:
    tuned = base_tensors()
    for at, name in enumerate((NAMES[1], "model.embed_tokens.weight", "model.norm.weight")):
        tuned[name] = stored(floats(tuned[name]) + drawn(90 + at, *tuned[name].shape, size=0.002), "BF16")
    model = only(repo, write(tmp_path, tuned))
    assert (model.verdict, model.exact) == ("relative", ())
    like = model.resembling[0]
    assert (like.name, like.equal, like.close, like.other, like.unlike, like.added, like.lacking) == (
        "base", 3, 2, 1, 0, 0, 0,
    )  # fmt: skip
    assert like.equal_bytes == 3 * SIDE * SIDE * 2
    assert like.correlation is not None
    assert like.correlation > 0.99
    assert like.bits_apart is not None
    assert 0 < like.bits_apart < 4
    assert like.difference is None


def test_a_model_of_the_same_shape_is_unknown(repo: Any, tmp_path: Path) -> None:
    found = repo.identify(write(tmp_path, base_tensors(seed=900)))
    (model,) = found.models
    assert (model.verdict, model.exact, model.resembling) == ("unknown", (), ())
    assert model.compared > 0  # it was looked at
    assert found.unknown
    assert found.commits.count == 0


def test_little_in_common_stays_unknown(repo: Any, tmp_path: Path) -> None:
    tensors = base_tensors(seed=900) | {"model.norm.weight": base_tensors()["model.norm.weight"]}
    model = only(repo, write(tmp_path, tensors))
    assert model.verdict == "unknown"
    assert {(like.kind, like.equal) for like in model.resembling} == {("parts", 1)}


def test_another_architecture_is_unknown(repo: Any, tmp_path: Path) -> None:
    model = only(repo, write(tmp_path, {"encoder.h.0.weight": stored(drawn(1, 8, 8), "F32")}))
    assert (model.verdict, model.resembling, model.compared) == ("unknown", (), 0)
    assert model.candidates == 4


def test_forgotten_content_is_not_compared(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        repo.forget("warm", reason="a court said so", apply=True, author="Ada")
        model = only(repo, write(tmp_path / "m", merged(base_tensors(), {1: 1.0}, "BF16")))
        assert model.resembling[0].difference is not None
        assert model.resembling[0].difference.behaviors == ()
        assert repo.identify(made / "warm").models[0].verdict == "exact"  # its digests are records, which stay
        assert repo.identify(made / "merged").models[0].verdict != "unknown"


# -- bad input ----------------------------------------------------------------------------------------------------


def test_other_files_are_looked_up_by_their_digest(repo: Any, made: Path, tmp_path: Path) -> None:
    known = repo.identify(made / "base" / "config.json")
    assert known.models == ()
    assert len(known.files[0].holders) >= 1
    assert not known.unknown
    (tmp_path / "model.pt").write_bytes(b"\x80\x02}q\x00.")
    assert repo.identify(tmp_path / "model.pt").unknown
    (tmp_path / "model.pt").unlink()
    assert repo.identify(tmp_path).files == ()


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 16, (50).to_bytes(8, "little") + b'{"a":1}' + b" " * 43, b"\x80\x02}q\x00."]
)
def test_a_file_that_breaks_its_format_is_refused(repo: Any, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError) as caught:
        repo.identify(tmp_path)
    assert caught.value.hint


def test_what_only_begins_like_safetensors_is_a_file_like_others(repo: Any, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes((2).to_bytes(8, "little") + b"{!" + b"x" * 100)
    assert repo.identify(tmp_path).models == ()


@pytest.mark.parametrize("name", ["nothing", "a\0b", "x" * 5000])
def test_a_path_that_cannot_be_read_is_refused(repo: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(rblstore.RblError) as caught:
        repo.identify(f"{tmp_path}/{name}")
    assert caught.value.hint or caught.value.message


def test_a_pipe_is_refused(repo: Any, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        repo.identify(tmp_path / "pipe")
    assert repo.identify(tmp_path).files == ()


def test_a_file_that_changes_meanwhile_is_refused(made: Path, tmp_path: Path) -> None:
    from rblstore.checkpoints.loose_files import ChangedFileError, hash_file, loose_files

    shutil.copy(made / "base" / "model.safetensors", tmp_path / "m.safetensors")
    ((file,), _) = loose_files(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"x")
    with pytest.raises(ChangedFileError):
        hash_file(file)


def test_an_empty_repository_knows_nothing(made: Path, tmp_path: Path) -> None:
    with rblstore.init(tmp_path / "empty") as repo:
        found = repo.identify(made / "base")
    assert (found.models[0].verdict, found.models[0].candidates) == ("unknown", 0)
