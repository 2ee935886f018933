"""Byte for byte: every file that comes out of a checkout has the SHA-256 of the file that went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import (
    Tensor,
    base_tensors,
    checked_out,
    digests,
    raw,
    values,
    write_adapter,
    write_base,
    write_safetensors,
)

import rblstore
from rblstore.objects import limits
from rblstore.objects.dtypes import BITS


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with rblstore.init(tmp_path / "store") as opened:
        yield opened


def round_trip(repo: Any, source: Path, out: Path, **options: Any) -> Any:
    """Commits a directory, checks it out, and expects the same files with the same bytes."""
    result = repo.commit("it", identity=source, **options)
    repo.checkout("HEAD", out)
    assert checked_out(out) == digests(source)
    assert repo.status(out).clean
    assert repo.fsck(full=True).damages == ()
    return result


def test_every_element_type(repo: Any, tmp_path: Path) -> None:
    tensors = {
        f"{dtype}.{name}": raw(dtype, shape, bits // 8, seed=at)
        for at, (dtype, bits) in enumerate(sorted(BITS.items()))
        if bits % 8 == 0
        for name, shape in {"matrix": (3, 4), "scalar": (), "none": (0, 5), "row": (1,)}.items()
    }
    assert {"F8_E4M3", "F8_E5M2", "BOOL", "BF16", "F64", "I64", "U16"} <= {one.dtype for one in tensors.values()}
    source = tmp_path / "source"
    write_safetensors(source / "model.safetensors", tensors)
    result = round_trip(repo, source, tmp_path / "out")
    assert repo.show(result.identity).identity.tensors == len(tensors)


def test_odd_values_keep_their_bits(repo: Any, tmp_path: Path) -> None:
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x7F800000, 1], "<u4").tobytes()
    source = tmp_path / "source"
    write_safetensors(source / "model.safetensors", {"odd": Tensor("F32", (5,), odd)})
    round_trip(repo, source, tmp_path / "out")


def test_five_shards_and_an_index(repo: Any, tmp_path: Path) -> None:
    tensors = base_tensors()
    names = sorted(tensors)
    source = tmp_path / "sharded"
    weight_map = {}
    for shard in range(5):
        part = names[shard::5]
        file = f"model-{shard + 1:05d}-of-00005.safetensors"
        write_safetensors(source / file, {name: tensors[name] for name in part}, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
    sharded = round_trip(repo, source, tmp_path / "out")
    whole = repo.commit("in one file", identity=write_base(tmp_path / "whole"))
    assert whole.identity != sharded.identity
    assert whole.added_contents == 1  # the header: every tensor is stored already
    roots = [repo.show(one.identity).record["tensor_root"] for one in (sharded, whole)]
    assert roots[0] == roots[1]


def test_tied_weights_are_stored_once(repo: Any, tmp_path: Path) -> None:
    shared = values(8, 4, seed=1)
    source = tmp_path / "tied"
    write_safetensors(source / "model.safetensors", {"embed.weight": shared, "lm_head.weight": shared})
    result = round_trip(repo, source, tmp_path / "out")
    assert result.added_contents == 2  # one tensor, one header


def test_headers_as_other_writers_make_them(repo: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    tensors = {"z": values(2, seed=1), "a": values(3, seed=2)}
    write_safetensors(source / "model.safetensors", tensors, metadata={"b": "é", "a": ""}, padding=13)
    write_safetensors(source / "adapter_like.safetensors", {"x": values(1)}, metadata={})
    write_safetensors(source / "nested" / "deep" / "more.safetensors", {}, padding=3)
    round_trip(repo, source, tmp_path / "out")


def test_files_of_every_sort(repo: Any, tmp_path: Path) -> None:
    source = write_base(tmp_path / "source")
    files = {
        "tokenizer.json": b"{}",
        "empty": b"",
        "empty.json": b"",
        "1_Pooling/config.json": b'{"a": 1}',
        "a/b/c/d/e.txt": b"deep\r\n\x00",
        "notes with spaces.txt": b"x",
        "Größe.txt": b"accents",
        ".gitattributes": b"* text",
        "merges.txt": b"#version",
        "binary.dat": bytes(range(256)) * 700,
    }
    for path, data in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    round_trip(repo, source, tmp_path / "out")


def test_contents_of_more_than_one_frame(repo: Any, tmp_path: Path) -> None:
    size = limits.FRAME_BYTES + 4096
    noise = np.random.default_rng(3).integers(0, 256, size, "u1").tobytes()
    source = tmp_path / "source"
    write_safetensors(
        source / "model.safetensors",
        {"noise": Tensor("U8", (size,), noise), "zeros": Tensor("F32", (size // 4,), bytes(size)), "s": values(1)},
    )
    result = round_trip(repo, source, tmp_path / "out")
    assert result.stored_bytes < size + size // 2  # zeros are compressed


@pytest.mark.parametrize("compression", ["none", "max"])
def test_whatever_the_compression(tmp_path: Path, compression: str) -> None:
    rblstore.init(tmp_path / "store").close()
    config = tmp_path / "store" / ".rbl" / "config.toml"
    config.chmod(0o644)
    config.write_text(f'[storage]\ncompression = "{compression}"\n')
    source = write_base(tmp_path / "source")
    (source / "text.txt").write_text("again and again " * 1000)
    with rblstore.open(tmp_path / "store") as repo:
        result = round_trip(repo, source, tmp_path / "out")
    raw_bytes = sum(path.stat().st_size for path in source.iterdir())
    assert (result.stored_bytes < raw_bytes) == (compression == "max")


def test_a_hub_cache_with_links_to_blobs(repo: Any, tmp_path: Path) -> None:
    plain = write_base(tmp_path / "plain")
    cache = tmp_path / "hub" / "models--org--name"
    snapshot = cache / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in plain.iterdir():
        blob = cache / "blobs" / digests(plain)[path.name]
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    result = repo.commit("from the cache", identity=snapshot)
    repo.checkout("HEAD", tmp_path / "out")
    assert checked_out(tmp_path / "out") == digests(plain)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    with rblstore.init(tmp_path / "other") as other:
        assert other.commit("as files", identity=plain).identity == result.identity


def test_a_link_elsewhere_is_refused(repo: Any, tmp_path: Path) -> None:
    source = write_base(tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    (source / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(rblstore.InputError, match=r"notes\.txt is a symbolic link"):
        repo.commit("base", identity=source)


def test_behaviors_lie_beside_the_identity_in_their_order(repo: Any, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapters = {name: write_adapter(tmp_path / name, seed=at) for at, name in enumerate(("zeta", "alpha"), start=1)}
    (adapters["zeta"] / "README.md").write_text("---\nlicense: mit\n---\n")
    (adapters["zeta"] / "sub").mkdir()
    (adapters["zeta"] / "sub" / "more.json").write_text("{}")
    result = repo.commit("both", identity=base, behaviors=adapters, weights={"alpha": 0.5})
    checkout = repo.checkout("HEAD", tmp_path / "out")
    expected = digests(base)
    for name, folder in adapters.items():
        expected.update({f"behaviors/{name}/{path}": digest for path, digest in digests(folder).items()})
    assert checked_out(tmp_path / "out") == expected
    assert (checkout.files, checkout.commit) == (len(expected), result.commit)
    manifest = json.loads((tmp_path / "out" / "rbl-composition.json").read_text())
    assert manifest["commit"] == result.commit
    assert [(slot["name"], slot["weight"], slot["path"]) for slot in manifest["slots"]] == [
        ("zeta", 1.0, "behaviors/zeta"),
        ("alpha", 0.5, "behaviors/alpha"),
    ]


class TestTargets:
    def test_a_directory_with_something_in_it_is_refused(self, repo: Any, tmp_path: Path) -> None:
        repo.commit("base", identity=write_base(tmp_path / "base"))
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        with pytest.raises(rblstore.RblError) as caught:
            repo.checkout("HEAD", out)
        assert caught.value.code == "target_not_empty"
        assert str(out) in caught.value.message
        assert [path.name for path in out.iterdir()] == ["mine.txt"]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))] == ["out"]

    def test_a_file_or_a_link_is_refused(self, repo: Any, tmp_path: Path) -> None:
        repo.commit("base", identity=write_base(tmp_path / "base"))
        (tmp_path / "file").write_text("x")
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "empty")
        for target in ("file", "link"):
            with pytest.raises(rblstore.RblError):
                repo.checkout("HEAD", tmp_path / target)
        assert not list((tmp_path / "empty").iterdir())

    def test_an_empty_directory_is_fine_and_missing_parents_are_refused(self, repo: Any, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base")
        repo.commit("base", identity=base)
        (tmp_path / "empty").mkdir()
        repo.checkout("HEAD", tmp_path / "empty")
        assert checked_out(tmp_path / "empty") == digests(base)
        with pytest.raises(rblstore.InputError) as caught:
            repo.checkout("HEAD", tmp_path / "new" / "deep" / "out")
        assert "mkdir" in str(caught.value.hint)

    def test_an_unknown_form_or_revision(self, repo: Any, tmp_path: Path) -> None:
        repo.commit("base", identity=write_base(tmp_path / "base"))
        with pytest.raises(rblstore.UsageError):
            repo.checkout("HEAD", tmp_path / "out", form="tar")
        with pytest.raises(rblstore.NotFoundError):
            repo.checkout("HEAD~7", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_what_is_written_is_the_users_own(self, repo: Any, tmp_path: Path) -> None:
        repo.commit("base", identity=write_base(tmp_path / "base"))
        repo.checkout("HEAD", tmp_path / "out")
        model = tmp_path / "out" / "model.safetensors"
        assert model.stat().st_nlink == 1
        model.write_bytes(b"mine")
        assert repo.fsck(full=True).ok

    def test_progress_adds_up(self, repo: Any, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base")
        size = sum(path.stat().st_size for path in base.iterdir())
        for act in (
            lambda told: repo.commit("base", identity=base, progress=told),
            lambda told: repo.checkout("HEAD", tmp_path / "out", progress=told),
            lambda told: repo.fsck(full=True, progress=told),
        ):
            events: list[Any] = []
            act(events.append)
            assert events[-1].done == events[-1].total
            for stage in {event.stage for event in events}:  # fsck looks at packs, and then at what is in them
                done = [event.done for event in events if event.stage == stage]
                assert done == sorted(done)
        assert events[-1].total != size  # packs, not files
