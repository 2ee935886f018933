"""What a reader of the operations asked: names, files that change meanwhile, bases that only look like ones, kinds."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import WIDTH, base_tensors, values, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.checkpoints import source_directory
from rblstore.operations.scratch import scratch


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    """base <- a (HEAD -> main)."""
    write_base(tmp_path / "base")
    with rblstore.init(tmp_path / "store") as opened:
        opened.commit("base", identity=tmp_path / "base")
        opened.commit("a", behaviors={"a": write_adapter(tmp_path / "a")})
        yield opened


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_named(repo: Any, weight: float) -> None:
    with pytest.raises(rblstore.UsageError, match=r"weight .* of 'a' is not a finite number"):
        repo.commit("weighed", weights={"a": weight})


def test_names_that_differ_in_case_alone_are_both_named(repo: Any, tmp_path: Path) -> None:
    with pytest.raises(rblstore.ConflictError, match="'A' and 'a' differ only in case") as caught:
        repo.commit("again", behaviors={"A": write_adapter(tmp_path / "b", seed=2)})
    assert caught.value.code == "slot_exists"
    assert repo.commit("renamed", behaviors={"A": tmp_path / "b"}, remove=["a"]).slots[0].name == "A"


def test_another_identity_refuses_every_behavior_by_name(repo: Any, tmp_path: Path) -> None:
    repo.commit(
        "b, v", behaviors={"b": write_adapter(tmp_path / "b", seed=2), "v": write_adapter(tmp_path / "v", parts=("v",))}
    )
    other = write_base(tmp_path / "other", model__layers__0__self_attn__q_proj__weight=values(WIDTH, WIDTH, seed=99))
    with pytest.raises(rblstore.ConflictError, match=r"'a' .*'b' ") as caught:
        repo.commit("other", identity=other)
    assert caught.value.code == "wrong_base"
    assert caught.value.hint == "Take them out in the same commit: --remove a --remove b"
    assert [slot.name for slot in repo.commit("other", identity=other, remove=["a", "b"]).slots] == ["v"]


def test_an_index_that_changes_after_it_was_stored_is_refused(repo: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    tensors = list(base_tensors(3).items())
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for file, part in zip(files, (tensors[:3], tensors[3:]), strict=True):
        write_safetensors(folder / file, dict(part), metadata={"format": "pt"})
    where = {name: files[at >= 3] for at, (name, _) in enumerate(tensors)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "zz.txt").write_text("read last")

    def rewrite(event: rblstore.ProgressEvent) -> None:
        if event.stage == "reading zz.txt":
            index.write_text(json.dumps({"metadata": {"later": 1}, "weight_map": where}))

    with pytest.raises(rblstore.ConflictError, match=r"index\.json was written to") as caught:
        repo.commit("sharded", identity=folder, remove=["a"], progress=rewrite)
    assert caught.value.code == "source_changed"


def test_a_file_that_is_cut_off_while_it_is_read_is_named(repo: Any, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "large")
    (folder / "zz.txt").write_bytes(bytes(12 << 20))

    def cut(event: rblstore.ProgressEvent) -> None:
        if event.stage == "reading zz.txt":
            os.truncate(folder / "zz.txt", 5 << 20)

    with pytest.raises(rblstore.ConflictError, match=r"zz\.txt was written to") as caught:
        repo.commit("large", identity=folder, remove=["a"], progress=cut)
    assert (caught.value.code, caught.value.object) == ("source_changed", str(folder / "zz.txt"))


def test_a_disk_that_fails_names_the_file(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_base(tmp_path / "failing")
    (folder / "zz.txt").write_bytes(bytes(12 << 20))
    read = os.preadv

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset and os.path.samestat(os.fstat(descriptor), (folder / "zz.txt").stat()):
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(source_directory.os, "preadv", fail)
    with pytest.raises(rblstore.RblError, match=r"zz\.txt: reading .* failed") as caught:
        repo.commit("failing", identity=folder, remove=["a"])
    assert caught.value.object == str(folder / "zz.txt")


def test_what_a_checkout_adds_is_named_and_nothing_else_goes(repo: Any, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "out")
    (tmp_path / "out" / "rbl-composition.json.md").write_text("notes")
    result = repo.commit("back", identity=tmp_path / "out")
    assert [path for path, _ in result.left_out] == ["behaviors"]
    repo.checkout("HEAD", tmp_path / "again")
    assert (tmp_path / "again" / "rbl-composition.json.md").read_text() == "notes"


@pytest.mark.parametrize("what", ["adapter", "other model"])
def test_a_folder_of_the_bases_name_without_its_tensors_says_nothing(repo: Any, tmp_path: Path, what: str) -> None:
    if what == "adapter":
        write_adapter(tmp_path / "gemma", seed=4)
    else:
        write_safetensors(tmp_path / "gemma" / "model.safetensors", {"other.weight": values(WIDTH)})
        (tmp_path / "gemma" / "config.json").write_text("{}")
    adapter = write_adapter(tmp_path / "b", seed=2, base_model_name_or_path="org/gemma")
    assert repo.commit("b", behaviors={"b": adapter}).slots[1].name == "b"


def test_a_folder_without_a_config_is_not_walked_through(repo: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from rblstore.operations import adapter_base

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was read because an adapter names it")

    monkeypatch.setattr(adapter_base, "scan_directory", fail)
    adapter = write_adapter(tmp_path / "b", seed=2, base_model_name_or_path="/")
    assert repo.commit("b", behaviors={"b": adapter}).slots[1].name == "b"


def test_a_tensor_of_another_identity_is_replaced_although_a_behavior_acts_on_it(repo: Any, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    other = write_base(tmp_path / "other", model__layers__0__self_attn__q_proj__weight=values(WIDTH, WIDTH, seed=99))
    repo.commit("other", identity=other, remove=["a"])
    changes = {one.target: (one.change, one.behaviors) for one in repo.diff().tensors}
    assert changes[name] == ("replaced", ("a",))
    assert changes["model.layers.1.self_attn.q_proj.weight"] == ("modified", ("a",))


def test_a_tensor_that_a_behavior_adds_is_added_and_removed(repo: Any, tmp_path: Path) -> None:
    head = {"base_model.model.score.weight": values(3, WIDTH, seed=5)}
    adapter = write_adapter(tmp_path / "s", seed=2, extra=head, modules_to_save=["score"], task_type="SEQ_CLS")
    repo.commit("score", behaviors={"s": adapter})
    assert {one.target: one.change for one in repo.diff().tensors}["score.weight"] == "added"
    assert {one.target: one.change for one in repo.diff("HEAD", "HEAD^").tensors}["score.weight"] == "removed"


def test_probes_that_differ_in_case_alone(repo: Any) -> None:
    repo.add_probe("ten", [{"id": "p", "tokens": [1, 2]}])
    with pytest.raises(rblstore.ConflictError, match="the probe 'ten' exists"):
        repo.add_probe("Ten", [{"id": "p", "tokens": [1, 3]}])


def test_several_probes_and_no_default_are_said_to_be_so(repo: Any) -> None:
    for name in ("one", "two"):
        repo.add_probe(name, [{"id": name, "tokens": [1, 2]}])
    with pytest.raises(rblstore.RblError, match="no probe is named, and none is the default"):
        repo.revert(behavior="a", require_verified=True)


@pytest.mark.parametrize(("number", "message"), [(errno.EROFS, None), (errno.ENOSPC, "no temporary folder")])
def test_what_only_reads_works_where_the_repository_cannot_be_written(
    repo: Any, monkeypatch: Any, number: int, message: str | None
) -> None:
    class Refusing(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
        def __init__(self, *, prefix: str, dir: Path | None = None, ignore_cleanup_errors: bool) -> None:
            if dir is not None:
                raise OSError(number, "refused")
            super().__init__(prefix=prefix, ignore_cleanup_errors=ignore_cleanup_errors)

    store = repo._store
    monkeypatch.setattr(tempfile, "TemporaryDirectory", Refusing)
    if message is None:
        with scratch(store, "test") as folder:
            assert folder.is_dir()
            assert store.folder not in folder.parents
        assert not folder.exists()
    else:
        with pytest.raises(rblstore.RblError, match=message), scratch(store, "test"):
            pytest.fail("a folder was made")
