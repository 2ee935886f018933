"""What a changed checkpoint takes beside the one that it came from, and that it comes back byte for byte."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import Tensor, checked_out, digests, write_safetensors

import rblstore
from rblstore.objects.ids import ContentId
from rblstore.operations import store_files
from rblstore.storage.codecs import DELTA, NO_PARAMETERS, PLANES, RAW, ZSTD

EMBEDDING, PROJECTION, NORM = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
ROWS, WIDTH = 300, 64


def bf16(*shape: int, seed: int) -> Tensor:
    """Normal values, like those of a trained weight."""
    drawn = np.random.default_rng(seed).normal(0, 0.02, shape).astype("<f4")
    return Tensor("BF16", shape, (drawn.view("<u4") >> 16).astype("<u2").tobytes())


def tensors() -> dict[str, Tensor]:
    return {
        EMBEDDING: bf16(ROWS, WIDTH, seed=1),
        PROJECTION: bf16(2 * WIDTH, WIDTH, seed=2),
        NORM: Tensor("F32", (WIDTH,), np.random.default_rng(3).normal(1, 0.1, WIDTH).astype("<f4").tobytes()),
    }


def write(folder: Path, weights: Mapping[str, Tensor], **config: Any) -> Path:
    write_safetensors(folder / "model.safetensors", weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": ROWS, **config}))
    return folder


def stepped(tensor: Tensor, seed: int) -> Tensor:
    """Every third element a step up or down, as a few steps of training leave it."""
    drawn, kind = np.random.default_rng(seed), "<u2" if tensor.dtype == "BF16" else "<u4"
    bits = np.frombuffer(tensor.data, kind)
    steps = np.where(drawn.integers(0, 3, len(bits)) == 0, drawn.choice([-1, 1], len(bits)), 0)
    return tensor._replace(data=(bits + steps.astype(bits.dtype)).astype(kind).tobytes())


def with_one_changed(tensor: Tensor, at: int = 777) -> Tensor:
    data = bytearray(tensor.data)
    data[2 * at] ^= 3
    return tensor._replace(data=bytes(data))


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with rblstore.init(tmp_path / "store") as opened:
        yield opened


def content_of(repo: Any, name: str) -> ContentId:
    """The content of a tensor of what HEAD composes: the latest overlay's, else the identity's."""
    out = repo.path / f"read{len(list(repo.path.iterdir()))}"
    repo.checkout("HEAD", out)
    data = (out / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return ContentId(hashlib.sha256(data[8 + length + begin : 8 + length + end]).hexdigest())


def stored(repo: Any, name: str) -> Any:
    found = repo._store.contents.find(content_of(repo, name))
    assert found is not None
    return found


def codecs(repo: Any, name: str) -> set[int]:
    return {frame.codec for frame in stored(repo, name).frames}


@pytest.mark.parametrize("form", ["overlay", "identity"])
class TestOneAfterTheOther:
    def commit(self, repo: Any, folder: Path, form: str, name: str = "ft") -> Any:
        return repo.commit(name, **({"behaviors": {name: folder}} if form == "overlay" else {"identity": folder}))

    def test_one_changed_element_takes_a_few_hundred_bytes(self, repo: Any, tmp_path: Path, form: str) -> None:
        before = tensors()
        repo.commit("base", identity=write(tmp_path / "base", before))
        assert codecs(repo, PROJECTION) == {PLANES}
        root = stored(repo, EMBEDDING).content
        tuned = write(tmp_path / "ft", {**before, EMBEDDING: with_one_changed(before[EMBEDDING])})
        result = self.commit(repo, tuned, form)
        new = stored(repo, EMBEDDING)
        assert codecs(repo, EMBEDDING) == {DELTA}
        assert new.bases == {root}
        assert new.location.stored < 300 < len(before[EMBEDDING].data) / 100
        assert (result.new_bytes, result.added_contents) == (len(before[EMBEDDING].data), 1)
        repo.checkout("HEAD", tmp_path / "out")
        assert checked_out(tmp_path / "out") == digests(tuned)
        assert repo.fsck(full=True).damages == ()

    @pytest.mark.parametrize("more", [1, 7, 100])
    def test_rows_that_were_added_are_all_that_is_stored(self, repo: Any, tmp_path: Path, form: str, more: int) -> None:
        before = tensors()
        repo.commit("base", identity=write(tmp_path / "base", before))
        grown = bf16(more, WIDTH, seed=9)
        embedding = Tensor("BF16", (ROWS + more, WIDTH), before[EMBEDDING].data + grown.data)
        tuned = write(tmp_path / "ft", {**before, EMBEDDING: embedding}, vocab_size=ROWS + more)
        self.commit(repo, tuned, form)
        assert codecs(repo, EMBEDDING) == {DELTA}
        assert stored(repo, EMBEDDING).location.stored < len(grown.data) + 400
        repo.checkout("HEAD", tmp_path / "out")
        assert checked_out(tmp_path / "out") == digests(tuned)

    def test_rows_that_were_taken_away_leave_next_to_nothing(self, repo: Any, tmp_path: Path, form: str) -> None:
        before = tensors()
        repo.commit("base", identity=write(tmp_path / "base", before))
        fewer = Tensor("BF16", (ROWS - 20, WIDTH), before[EMBEDDING].data[: -20 * WIDTH * 2])
        tuned = write(tmp_path / "ft", {**before, EMBEDDING: fewer}, vocab_size=ROWS - 20)
        self.commit(repo, tuned, form)
        assert codecs(repo, EMBEDDING) == {DELTA}
        assert stored(repo, EMBEDDING).location.stored < 100
        repo.checkout("HEAD", tmp_path / "out")
        assert checked_out(tmp_path / "out") == digests(tuned)

    @pytest.mark.parametrize(
        "changed",
        [
            Tensor("F16", (ROWS, WIDTH), bf16(ROWS, WIDTH, seed=1).data),  # the same bytes of another type: one content
            Tensor("BF16", (WIDTH, ROWS), bf16(ROWS, WIDTH, seed=4).data),
            Tensor("BF16", (ROWS, WIDTH, 1), bf16(ROWS, WIDTH, seed=5).data),
            Tensor("F32", (ROWS, WIDTH // 2), with_one_changed(bf16(ROWS, WIDTH, seed=1)).data),
        ],
        ids=["type", "shape", "rank", "both"],
    )
    def test_what_is_no_like_tensor_is_no_base(self, repo: Any, tmp_path: Path, form: str, changed: Tensor) -> None:
        before = tensors()
        repo.commit("base", identity=write(tmp_path / "base", before))
        tuned = write(tmp_path / "ft", {**before, EMBEDDING: changed})
        self.commit(repo, tuned, form)
        assert DELTA not in codecs(repo, EMBEDDING)
        repo.checkout("HEAD", tmp_path / "out")
        assert checked_out(tmp_path / "out") == digests(tuned)

    def test_each_generation_stands_on_the_first(self, repo: Any, tmp_path: Path, form: str) -> None:
        """A chain of differences has one link, however many generations there are."""
        weights = tensors()
        repo.commit("base", identity=write(tmp_path / "base", weights))
        roots = {name: stored(repo, name).content for name in weights}
        folders = []
        for generation in range(1, 4):
            weights = {name: stepped(tensor, generation) for name, tensor in weights.items()}
            folders.append(write(tmp_path / f"ft{generation}", weights))
            self.commit(repo, folders[-1], form, f"ft{generation}")
            for name in (EMBEDDING, PROJECTION):
                assert codecs(repo, name) == {DELTA}
                assert stored(repo, name).bases == {roots[name]}
                assert stored(repo, name).location.stored < 0.5 * len(weights[name].data)
        for number, folder in enumerate(reversed(folders)):
            repo.checkout(f"HEAD~{number}", tmp_path / f"out{number}")
            assert checked_out(tmp_path / f"out{number}") == digests(folder)
        assert repo.fsck(full=True).damages == ()

    def test_none_stores_everything_as_it_is(self, repo: Any, tmp_path: Path, form: str) -> None:
        (repo.path / ".rbl" / "config.toml").write_text("[storage]\ncompression = 'none'\n")
        with rblstore.open(repo.path) as again:
            before = tensors()
            again.commit("base", identity=write(tmp_path / "base", before))
            tuned = write(tmp_path / "ft", {name: stepped(tensor, 1) for name, tensor in before.items()})
            self.commit(again, tuned, form)
            for name in before:
                assert codecs(again, name) == {RAW}
            again.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(tuned)


def test_the_packs_are_the_same_whatever_the_threads(tmp_path: Path) -> None:
    before = tensors()
    base = write(tmp_path / "base", before)
    tuned = write(tmp_path / "ft", {name: stepped(tensor, 1) for name, tensor in before.items()})
    found = []
    for threads in (1, 2, 8):
        with rblstore.init(tmp_path / f"store{threads}") as repo:
            (repo.path / ".rbl" / "config.toml").write_text(f"[storage]\ncompression = 'max'\nthreads = {threads}\n")
        with rblstore.open(repo.path) as repo:
            repo.commit("base", identity=base)
            repo.commit("ft", behaviors={"ft": tuned})
        packs = [path.read_bytes() for path in sorted((repo.path / ".rbl" / "packs").rglob("*.pack"))]
        found.append(sorted(data for data in packs if data[8:9] == b"C"))
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]


def test_every_codec_is_in_a_commit_and_its_entry_says_the_width(repo: Any, tmp_path: Path) -> None:
    before = {**tensors(), "noise": Tensor("U8", (5000,), np.random.default_rng(1).bytes(5000))}
    base = write(tmp_path / "base", before)
    (base / "notes.txt").write_text("again and again, " * 500)
    repo.commit("base", identity=base)
    repo.commit("ft", behaviors={"ft": write(tmp_path / "ft", {**before, NORM: stepped(before[NORM], 1)})})
    found = set()
    for name in repo._store.packs():
        pack = repo._store.pack(name)
        if pack.kind() == "C":
            entries = pack.entries(0, pack.footer().entries)
            found |= {(entry.codec, entry.element_width, entry.base is None) for entry in entries if entry.size >= 256}
            assert all((entry.parameters == NO_PARAMETERS) == (entry.codec in (RAW, ZSTD)) for entry in entries)
    assert found >= {(PLANES, 2, True), (RAW, 1, True), (ZSTD, 0, True), (DELTA, 4, False)}


def test_a_base_that_is_damaged_stops_the_commit(repo: Any, tmp_path: Path) -> None:
    before = tensors()
    repo.commit("base", identity=write(tmp_path / "base", before))
    found = stored(repo, PROJECTION)
    path = repo.path / ".rbl" / "packs" / found.location.pack[:2] / f"{found.location.pack}.pack"
    data = bytearray(path.read_bytes())
    data[found.frames[0].offset + 40] ^= 4
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    head = repo.head
    tuned = write(tmp_path / "ft", {**before, PROJECTION: stepped(before[PROJECTION], 1)})
    with pytest.raises(rblstore.CorruptError, match=found.content):
        repo.commit("ft", behaviors={"ft": tuned})
    assert repo.head == head
    assert not list((repo.path / ".rbl" / "tmp").iterdir())
    # Nothing of it is read where nothing is encoded against it.
    plain = write(tmp_path / "plain", {**before, EMBEDDING: stepped(before[EMBEDDING], 1)})
    assert repo.commit("plain", behaviors={"plain": plain}).commit == repo.head


def test_an_untouched_tensor_is_not_read_twice(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tensors()
    repo.commit("base", identity=write(tmp_path / "base", before))
    tuned = write(tmp_path / "ft", {**before, EMBEDDING: with_one_changed(before[EMBEDDING])})
    spans = []
    real = store_files.read_exactly_into

    def note(descriptor: int, offset: int, out: memoryview) -> None:
        spans.append((offset, len(out)))
        real(descriptor, offset, out)

    monkeypatch.setattr(store_files, "read_exactly_into", note)
    repo.commit("ft", behaviors={"ft": tuned})
    assert len(spans) == len(set(spans)) == len(before) + 1  # config.json
