"""A part of a checkout: the files and tensors asked for, nothing else read, and nobody taken in by what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from storage_samples import nudged, weights
from tiny_checkpoints import Tensor, base_tensors, digests, raw, values, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.checkpoints.checkout_layout import CheckoutManifest
from rblstore.objects.content_records import FileManifest, Identity
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CompositionId, ContentId, FileManifestId, IdentityId
from rblstore.storage.disk import DiskBackend

NORM = "model.norm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors in the order in which their bytes lie, without any reader of ours."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    found, end = {}, 0
    for name, one in header.items():
        begin, after = one["data_offsets"]
        assert begin == end
        end = after
        found[name] = Tensor(one["dtype"], tuple(one["shape"]), data[8 + length + begin : 8 + length + end])
    assert end == len(data) - 8 - length
    return found


def manifest(directory: Path) -> CheckoutManifest:
    return CheckoutManifest.parse((directory / "rbl-composition.json").read_bytes())


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    with rblstore.init(tmp_path / "store") as made:
        made.commit("base", identity=write_base(tmp_path / "base"))
        made.commit("two", behaviors={"a": write_adapter(tmp_path / "a"), "b": write_adapter(tmp_path / "b", seed=2)})
        yield made


class TestFiles:
    def test_one(self, repo: Any, tmp_path: Path) -> None:
        result = repo.checkout("HEAD", tmp_path / "out", only="config.json")
        assert digests(tmp_path / "out").keys() == {"config.json", "rbl-composition.json"}
        assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()
        size = (tmp_path / "base" / "config.json").stat().st_size
        assert (result.form, result.files, result.tensors, result.bytes, result.load) == ("partial", 1, 0, size, ())

    def test_those_of_one_behavior(self, repo: Any, tmp_path: Path) -> None:
        repo.checkout("HEAD", tmp_path / "out", only=["behaviors/b/*", "*.json"])
        assert digests(tmp_path / "out" / "behaviors" / "b") == digests(tmp_path / "b")
        assert not (tmp_path / "out" / "behaviors" / "a").exists()
        written = manifest(tmp_path / "out")
        assert written.form == "partial"
        assert [(slot.name, slot.path) for slot in written.slots] == [("a", None), ("b", "behaviors/b")]
        assert {file.path for file in written.files} | {"rbl-composition.json"} == digests(tmp_path / "out").keys()

    def test_status_compares_what_was_taken(self, repo: Any, tmp_path: Path) -> None:
        out = tmp_path / "out"
        repo.checkout("HEAD", out, only="**/*.json", tensors=NORM)
        assert repo.status(out).clean
        assert repo.status(out).form == "partial"
        (out / "config.json").unlink()
        (out / "tensors.safetensors").write_bytes(b"")
        (out / "model.safetensors").write_bytes(b"")
        assert [(one.path, one.kind) for one in repo.status(out).differences] == [
            ("config.json", "missing"),
            ("model.safetensors", "added"),
            ("tensors.safetensors", "changed"),
        ]

    def test_an_adapter_from_a_part_is_an_adapter(self, repo: Any, tmp_path: Path) -> None:
        repo.checkout("HEAD", tmp_path / "out", only="behaviors/a/*")
        with pytest.raises(rblstore.NothingChangedError):
            repo.commit("again", behaviors={"a": tmp_path / "out" / "behaviors" / "a"})


class TestTensors:
    def test_they_keep_name_type_shape_and_bytes(self, tmp_path: Path) -> None:
        tensors = {
            "z": values(3),
            "b.half": raw("F16", (2, 3), 2, seed=1),
            "a.half": raw("BF16", (5,), 2, seed=2),
            "byte": raw("F8_E4M3", (7,), 1, seed=3),
            "none": raw("F32", (0, 4), 4),
            "scalar": values(),
            "left": values(4),
        }
        write_safetensors(tmp_path / "base" / "model.safetensors", tensors, metadata={"format": "pt"})
        (tmp_path / "base" / "config.json").write_text("{}")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tmp_path / "base")
            patterns = ["[a-b]*", "z", "none", "scalar"]
            result = repo.checkout("HEAD", tmp_path / "out", tensors=patterns)
            assert repo.status(tmp_path / "out").clean
        found = read_safetensors(tmp_path / "out" / "tensors.safetensors")
        # As the safetensors library orders them: the widest elements first, then by name.
        assert list(found) == ["none", "scalar", "z", "a.half", "b.half", "byte"]
        assert found == {name: tensor for name, tensor in tensors.items() if name != "left"}
        assert (result.tensors, result.files) == (6, 1)
        assert result.load[-1] == f"tensors = load_file({str(tmp_path / 'out' / 'tensors.safetensors')!r})"

    def test_shards_make_no_difference(self, tmp_path: Path) -> None:
        tensors = base_tensors()
        names = sorted(tensors)
        weight_map = {}
        for shard in range(2):
            file = f"model-{shard + 1:05d}-of-00002.safetensors"
            write_safetensors(tmp_path / "base" / file, {name: tensors[name] for name in names[shard::2]})
            weight_map.update(dict.fromkeys(names[shard::2], file))
        index = {"metadata": {}, "weight_map": weight_map}
        (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tmp_path / "base")
            repo.checkout("HEAD", tmp_path / "out", tensors="model.layers.*")
        found = read_safetensors(tmp_path / "out" / "tensors.safetensors")
        assert found == {name: tensors[name] for name in names if name.startswith("model.layers.")}

    def test_overlays_are_laid_on_and_adapters_are_not(self, repo: Any, tmp_path: Path) -> None:
        new = values(4, seed=9)
        fine = write_base(tmp_path / "ft", model__norm__weight=new, model__extra=values(2, seed=8))
        repo.commit("ft", behaviors={"ft": fine}, remove=["a", "b"])
        repo.commit("a", behaviors={"a": tmp_path / "a"})
        repo.checkout("HEAD", tmp_path / "out", tensors=[NORM, QUERY, "model.extra"])
        found = read_safetensors(tmp_path / "out" / "tensors.safetensors")
        assert found == {NORM: new, QUERY: base_tensors()[QUERY], "model.extra": values(2, seed=8)}
        with pytest.raises(rblstore.NotFoundError, match=r"no tensor matches 'model\.extra'"):
            repo.checkout("HEAD~2", tmp_path / "older", tensors="model.extra")

    def test_files_beside_them(self, repo: Any, tmp_path: Path) -> None:
        repo.checkout("HEAD", tmp_path / "out", only="config.json", tensors=NORM)
        names = {"config.json", "tensors.safetensors", "rbl-composition.json"}
        assert digests(tmp_path / "out").keys() == names

    def test_a_file_of_that_name_is_in_the_way_only_if_it_is_taken(self, tmp_path: Path) -> None:
        write_safetensors(write_base(tmp_path / "base") / "tensors.safetensors", {"other": values(2)})
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tmp_path / "base")
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.checkout("HEAD", tmp_path / "out", only="*", tensors=NORM)
            assert caught.value.code == "layout_collision"
            assert not (tmp_path / "out").exists()
            repo.checkout("HEAD", tmp_path / "out", only="config.json", tensors=NORM)
            repo.checkout("HEAD", tmp_path / "own", only="tensors.safetensors")
        assert read_safetensors(tmp_path / "out" / "tensors.safetensors") == {NORM: base_tensors()[NORM]}
        assert digests(tmp_path / "own").items() >= {
            ("tensors.safetensors", digests(tmp_path / "base")["tensors.safetensors"])
        }

    def test_a_manifest_that_lies_about_sizes_is_refused(self, repo: Any, tmp_path: Path) -> None:
        store = repo._store
        before = store.record(store.record(repo.head, Commit).composition, Composition)
        identity = store.record(before.identity, Identity)
        (entry,) = (one for one in identity.files if one.manifest)
        stored = store.record(entry.manifest, FileManifest)
        # Two tensors of one size in all, each as large as the other should be.
        longer = {NORM: (8,), QUERY: (3, 4)}
        tensors = tuple(
            replace(one, tensor=replace(one.tensor, shape=longer.get(one.name, one.tensor.shape)))
            for one in stored.tensors
        )
        with store.transaction("a") as transaction:
            lie = FileManifestId(transaction.add_record(replace(stored, tensors=tensors)))
            files = tuple(replace(one, manifest=lie) if one.manifest else one for one in identity.files)
            changed = IdentityId(transaction.add_record(replace(identity, files=files)))
            composition = CompositionId(transaction.add_record(Composition(changed, ())))
            commit = Commit(composition, (repo.head,), "a", "2026-03-01T12:00:00Z", "lie")
            transaction.set_ref(store.head_branch(), repo.head, transaction.add_record(commit))
            transaction.describe("lie")
        with pytest.raises(rblstore.CorruptError, match="where its shape says"):
            repo.checkout("HEAD", tmp_path / "out", tensors=[NORM, QUERY])
        assert not (tmp_path / "out").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message", "code"),
        [
            ({"only": "confg.json"}, "no file matches", "nothing_matched"),
            ({"only": ["config.json", "x*"]}, "no file matches 'x\\*'", "nothing_matched"),
            ({"tensors": "model.norm"}, "no tensor matches", "nothing_matched"),
            ({"only": "rbl-composition.json"}, "no file matches", "nothing_matched"),
            ({"only": []}, "no pattern says which files", "usage"),
            ({"tensors": ()}, "no pattern says which tensors", "usage"),
            ({"only": "*", "form": "merged"}, "cannot be checked out in part", "usage"),
            ({"tensors": "*", "form": "merged"}, "cannot be checked out in part", "usage"),
            ({"only": "*", "form": "partial"}, "none of adapters, merged", "usage"),
        ],
    )
    def test_nothing_is_left_behind(
        self, repo: Any, tmp_path: Path, options: dict[str, Any], message: str, code: str
    ) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(rblstore.RblError, match=message) as caught:
            repo.checkout("HEAD", tmp_path / "out", **options)
        assert caught.value.code == code
        assert sorted(tmp_path.iterdir()) == before

    def test_a_part_is_neither_loaded_nor_committed(self, repo: Any, tmp_path: Path) -> None:
        out, head = tmp_path / "out", repo.head
        repo.checkout("HEAD", out, only="model.safetensors")
        for attempt in (
            lambda: rblstore.load_checkout(out),
            lambda: repo.commit("half", identity=out),
            lambda: repo.commit("half", behaviors={"half": out}),
        ):
            with pytest.raises(rblstore.InputError, match="is a partial checkout") as caught:
                attempt()
            assert (caught.value.code, caught.value.object) == ("partial_checkout", str(out))
            assert head.short in (caught.value.hint or "")
        assert repo.head == head

    def test_nor_is_one_without_weights(self, repo: Any, tmp_path: Path) -> None:
        repo.checkout("HEAD", tmp_path / "out", only="config.json")
        with pytest.raises(rblstore.InputError, match="is a partial checkout"):
            repo.commit("half", identity=tmp_path / "out")

    def test_a_composition_file_that_cannot_be_read_is_not_taken_for_a_whole(self, repo: Any, tmp_path: Path) -> None:
        notes = tmp_path / "base" / "rbl-composition.json"
        notes.write_text("{}")
        with pytest.raises(rblstore.InputError, match=r"rbl-composition\.json"):
            repo.commit("what is it?", identity=tmp_path / "base")
        notes.unlink()
        os.mkfifo(notes)
        for attempt in (
            lambda: repo.commit("a pipe", identity=tmp_path / "base"),
            lambda: repo.status(tmp_path / "base"),
            lambda: rblstore.load_checkout(tmp_path / "base"),
        ):
            with pytest.raises(rblstore.InputError):
                attempt()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int, int]]:
    """(pack's key, offset, length) of everything that is read from packs."""
    found: set[tuple[str, int, int]] = set()
    read, read_into = DiskBackend.read, DiskBackend.read_into

    def noted(self: DiskBackend, key: str, offset: int, length: int) -> bytes:
        found.add((key, offset, length))
        return read(self, key, offset, length)

    def noted_into(self: DiskBackend, key: str, offset: int, out: memoryview) -> None:
        found.add((key, offset, len(out)))
        read_into(self, key, offset, out)

    monkeypatch.setattr(DiskBackend, "read", noted)
    monkeypatch.setattr(DiskBackend, "read_into", noted_into)
    return found


class TestWhatIsRead:
    COUNT = 40
    ELEMENTS = 4096

    def bf16(self, data: bytes) -> Tensor:
        return Tensor("BF16", (64, 64), data)

    @pytest.fixture
    def many(self, tmp_path: Path) -> Iterator[Any]:
        """A base of many tensors, and a fine-tune that is stored as differences from it."""
        base = {f"t{at}": weights(self.ELEMENTS, seed=at) for at in range(self.COUNT)}
        with rblstore.init(tmp_path / "store") as repo:
            for name, change in (("base", False), ("ft", True)):
                write_safetensors(
                    tmp_path / name / "model.safetensors",
                    {key: self.bf16(nudged(data, seed=1) if change else data) for key, data in base.items()},
                )
                (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
            repo.commit("base", identity=tmp_path / "base")
            repo.commit("ft", behaviors={"ft": tmp_path / "ft"})
            yield repo

    def frames(self, repo: Any, *contents: ContentId) -> set[tuple[str, int, int]]:
        """Where the frames of contents are: (pack's key, offset, length)."""
        return {
            (one._reader._key, frame.offset, frame.stored_length)
            for one in repo._store.contents.stored(contents)
            for frame in one.frames
        }

    def of_contents(self, repo: Any, reads: set[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
        """Those of reads that take frames out of content packs: neither headers nor indexes."""
        packs = {}
        for key in {key for key, _, _ in reads}:
            reader = repo._store.contents.pack(Path(key).stem)
            packs[key] = reader.footer().index_offset if reader.kind() == "C" else 0
        return {(key, offset, length) for key, offset, length in reads if 16 <= offset < packs[key]}

    def content(self, repo: Any, revision: str, name: str) -> ContentId:
        from rblstore.operations.stored_models import composed_state

        store = repo._store
        composition = store.record(store.record(repo.resolve(revision), Commit).composition, Composition)
        return composed_state(store, composition).tensors[name].content

    def test_one_tensor(self, many: Any, tmp_path: Path, reads: set[tuple[str, int, int]]) -> None:
        wanted = self.content(many, "HEAD~1", "t7")
        reads.clear()
        many.checkout("HEAD~1", tmp_path / "out", tensors="t7")
        noted = set(reads)
        assert self.of_contents(many, noted) == self.frames(many, wanted)
        assert read_safetensors(tmp_path / "out" / "tensors.safetensors") == {
            "t7": self.bf16(weights(self.ELEMENTS, seed=7))
        }

    def test_one_tensor_that_is_a_difference(self, many: Any, tmp_path: Path, reads: set[tuple[str, int, int]]) -> None:
        wanted, beneath = self.content(many, "HEAD", "t7"), self.content(many, "HEAD~1", "t7")
        (stored,) = many._store.contents.stored([wanted])
        assert stored.bases == {beneath}
        reads.clear()
        many.checkout("HEAD", tmp_path / "out", tensors="t7")
        noted = set(reads)
        assert self.of_contents(many, noted) == self.frames(many, wanted, beneath)
        (tensor,) = read_safetensors(tmp_path / "out" / "tensors.safetensors").values()
        assert tensor == self.bf16(nudged(weights(self.ELEMENTS, seed=7), seed=1))

    def test_one_file(self, many: Any, tmp_path: Path, reads: set[tuple[str, int, int]]) -> None:
        config = ContentId(digests(tmp_path / "base")["config.json"])
        reads.clear()
        many.checkout("HEAD", tmp_path / "out", only="config.json")
        assert self.of_contents(many, set(reads)) == self.frames(many, config)

    def test_one_tensor_in_memory(self, many: Any, reads: set[tuple[str, int, int]]) -> None:
        import torch

        wanted = self.content(many, "HEAD~1", "t7")
        reads.clear()
        tensor = many.tensor("HEAD~1", "t7")
        assert self.of_contents(many, set(reads)) == self.frames(many, wanted)
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.bfloat16, (64, 64))
        assert tensor.view(torch.uint8).numpy().tobytes() == weights(self.ELEMENTS, seed=7)

    def test_damage_elsewhere_is_not_met_and_damage_here_is(self, many: Any, tmp_path: Path) -> None:
        wanted = self.content(many, "HEAD~1", "t7")
        ((key, offset, _),) = self.frames(many, wanted)
        pack = tmp_path / "store" / ".rbl" / key
        pack.chmod(0o644)
        with pack.open("r+b") as stream:
            stream.seek(offset)
            byte = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([byte ^ 1]))
        many.checkout("HEAD~1", tmp_path / "other", tensors="t8")
        for revision in ("HEAD~1", "HEAD"):  # the second stands on it as a difference
            with pytest.raises(rblstore.CorruptError):
                many.checkout(revision, tmp_path / "out", tensors="t[67]")
            assert not (tmp_path / "out").exists()
            with pytest.raises(rblstore.CorruptError):
                many.tensor(revision, "t7")


class TestInMemory:
    def test_it_is_its_own(self, repo: Any) -> None:
        import torch

        first, second = repo.tensor("HEAD", NORM), repo.tensor("HEAD", NORM)
        assert (first.dtype, tuple(first.shape)) == (torch.float32, (4,))
        assert first.numpy().tobytes() == base_tensors()[NORM].data
        first.zero_()
        assert second.numpy().tobytes() == base_tensors()[NORM].data == repo.tensor("HEAD", NORM).numpy().tobytes()

    def test_a_name_that_is_not_there(self, repo: Any) -> None:
        with pytest.raises(rblstore.NotFoundError, match=r"HEAD~1 has no tensor 'model\.norm'") as caught:
            repo.tensor("HEAD~1", "model.norm")
        assert caught.value.code == "no_such_tensor"
        assert NORM in (caught.value.hint or "")
        with pytest.raises(rblstore.NotFoundError):
            repo.tensor("HEAD", "model.*")  # a name, no pattern

    def test_an_element_type_that_torch_has_not(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "base" / "model.safetensors", {"t": Tensor("F6_E2M3", (4,), b"abc")})
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tmp_path / "base")
            with pytest.raises(rblstore.InputError, match="no element type F6_E2M3"):
                repo.tensor("HEAD", "t")
            repo.checkout("HEAD", tmp_path / "out", tensors="t")
        assert read_safetensors(tmp_path / "out" / "tensors.safetensors") == {"t": Tensor("F6_E2M3", (4,), b"abc")}
