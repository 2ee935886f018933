from __future__ import annotations

import errno
import os
import pickle
import re
import shlex
import socket
import zipfile
from pathlib import Path

import pytest

from rblstore.checkpoints.pickle_conversion import PickleOnlyError
from rblstore.checkpoints.safetensors_header import encode_header
from rblstore.checkpoints.source_directory import (
    BadDirectoryError,
    LeftOut,
    SourceDirectory,
    TruncatedFileError,
    read_exact,
    scan_directory,
)
from rblstore.errors import InputError

WEIGHTS = encode_header({"w": ("U8", (4,))}) + b"1234"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 5\n"
PICKLE = pickle.dumps({"a": [1, 2]}, 2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "1_Pooling" / "config.json").write_bytes(b"{ }")
    return folder


def listed(directory: SourceDirectory) -> list[tuple[str, str, int]]:
    return [(file.path, file.kind, file.size) for file in directory.files]


def test_lists_files_sorted_with_kind_and_size(model: Path) -> None:
    scanned = scan_directory(model)
    assert scanned.path == model
    assert listed(scanned) == [
        ("1_Pooling/config.json", "plain", 3),
        ("config.json", "plain", 2),
        ("model.safetensors", "safetensors", len(WEIGHTS)),
    ]
    assert scanned.left_out == ()
    for file in scanned.files:
        descriptor = file.open()
        assert read_exact(descriptor, 0, file.size) == (model / file.path).read_bytes()
        os.close(descriptor)


def test_a_checkout_s_own_files_are_listed(model: Path) -> None:
    (model / "behaviors" / "a").mkdir(parents=True)
    (model / "behaviors" / "a" / "adapter_config.json").write_bytes(b"{}")
    (model / "rbl-composition.json").write_bytes(b"{}")
    assert {"behaviors/a/adapter_config.json", "rbl-composition.json"} <= {
        file.path for file in scan_directory(model).files
    }


def test_version_control_and_caches_are_left_out_and_named(model: Path) -> None:
    for folder in (
        ".git",
        ".hg",
        ".svn",
        ".rbl",
        ".cache",
        "__pycache__",
        ".ipynb_checkpoints",
        ".dvc",
        "1_Pooling/__pycache__",
    ):
        (model / folder / "deep").mkdir(parents=True)
        os.mkfifo(model / folder / "deep" / "fifo")
    (model / ".DS_Store").write_bytes(b"x")
    scanned = scan_directory(model)
    assert len(scanned.files) == 3
    left_out = ".DS_Store .cache .dvc .git .hg .ipynb_checkpoints .rbl .svn 1_Pooling/__pycache__ __pycache__"
    assert " ".join(entry.path for entry in scanned.left_out) == left_out
    assert LeftOut(".git", "version control") in scanned.left_out


def test_pickles_beside_safetensors_are_left_out_or_kept_as_bytes(model: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"\x00\xff\x01" * 9)
    (model / "state.json").write_bytes(PICKLE)
    scanned = scan_directory(model)
    assert [entry.path for entry in scanned.left_out] == ["optimizer.pt", "state.json"]
    assert all("pickle" in entry.reason for entry in scanned.left_out)
    kept = scan_directory(model, include_opaque=True)
    assert kept.left_out == ()
    assert {file.path: file.kind for file in kept.files if file.kind == "opaque"} == {
        "optimizer.pt": "opaque",
        "state.json": "opaque",
    }


def test_a_pickle_at_the_end_of_an_archive_is_found(model: Path) -> None:
    with zipfile.ZipFile(model / "extra.zip", "w") as archive:
        archive.writestr("padding", os.urandom(1) * 9000)
        archive.writestr("x/data.pkl", PICKLE)
    assert [entry.path for entry in scan_directory(model).left_out] == ["extra.zip"]


def test_only_pickles_are_refused_with_a_conversion_that_works(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "it's a model"
    folder.mkdir()
    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"embed": shared, "head": shared}, folder / "pytorch_model.bin")
    (folder / "training_args.bin").write_bytes(PICKLE)
    for opaque in (False, True):
        with pytest.raises(PickleOnlyError, match=r"pytorch_model\.bin") as caught:
            scan_directory(folder, include_opaque=opaque)
    assert caught.value.code == "pickle_refused"
    assert caught.value.hint is not None
    words = shlex.split(re.split(r" -- or ", caught.value.hint.split("convert them: ", 1)[1])[0])
    assert words[:2] == ["python", "-c"]
    assert "weights_only=True" in words[2]
    exec(words[2], {})
    loaded = pytest.importorskip("safetensors.torch").load_file(folder / "model.safetensors")
    assert set(loaded) == {"embed", "head"}
    assert torch.equal(loaded["head"], shared)
    assert [file.path for file in scan_directory(folder).files] == ["model.safetensors"]


def test_a_pickled_adapter_converts_to_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(PICKLE)
    with pytest.raises(PickleOnlyError) as caught:
        scan_directory(tmp_path)
    assert "adapter_model.safetensors" in str(caught.value.hint)


def test_a_pickle_named_safetensors_is_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(PICKLE)
    with pytest.raises(PickleOnlyError, match="whatever its name says"):
        scan_directory(model, include_opaque=True)


def test_a_header_length_that_reads_as_a_pickle_is_no_pickle(model: Path) -> None:
    length = int.from_bytes(b"\x80\x02(", "little")
    (model / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}".ljust(length))
    assert scan_directory(model).left_out == ()


def test_no_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(BadDirectoryError, match="no safetensors weights"):
        scan_directory(tmp_path)
    assert listed(scan_directory(tmp_path, require_weights=False)) == [("tokenizer.json", "plain", 2)]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json", "tokenizer.model"]
)
def test_a_git_lfs_pointer_in_place_of_something_needed_is_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(POINTER)
    with pytest.raises(BadDirectoryError, match=f"{re.escape(name)} is a git-lfs pointer") as caught:
        scan_directory(model)
    assert "git lfs pull" in str(caught.value.hint)


def test_other_git_lfs_pointers_are_left_out_and_named(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(POINTER)
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(POINTER)
    scanned = scan_directory(model)
    assert [entry.path for entry in scanned.left_out] == ["onnx/model.onnx", "pytorch_model.bin"]
    (model / "model.safetensors").unlink()
    with pytest.raises(BadDirectoryError, match="pointers in place of weights") as caught:
        scan_directory(model)
    assert "git lfs pull" in str(caught.value.hint)


@pytest.mark.parametrize("target", ["config.json", "../secret", "/etc/passwd", "missing", "1_Pooling"])
def test_symbolic_links_are_refused_by_name(model: Path, target: str) -> None:
    (model.parent / "secret").write_bytes(b"x")
    (model / "linked.json").symlink_to(target)
    with pytest.raises(BadDirectoryError, match=r"linked\.json is a symbolic link"):
        scan_directory(model)


def test_the_directory_itself_may_be_a_link(model: Path) -> None:
    link = model.parent / "link"
    link.symlink_to(model)
    assert len(scan_directory(link).files) == 3


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    cache = tmp_path / "hub" / "models--org--name"
    folder = cache / "snapshots" / ("c" * 40)
    (folder / "1_Pooling").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / ("a" * 64)).write_bytes(WEIGHTS)
    (cache / "blobs" / ("b" * 40)).write_bytes(b"{}")
    (folder / "model.safetensors").symlink_to("../../blobs/" + "a" * 64)
    (folder / "config.json").symlink_to("../../blobs/" + "b" * 40)
    (folder / "1_Pooling" / "config.json").symlink_to("../../../blobs/" + "b" * 40)
    return folder


def test_a_hub_snapshot_s_links_lead_to_its_blobs(snapshot: Path) -> None:
    scanned = scan_directory(snapshot)
    assert listed(scanned) == [
        ("1_Pooling/config.json", "plain", 2),
        ("config.json", "plain", 2),
        ("model.safetensors", "safetensors", len(WEIGHTS)),
    ]
    descriptor = scanned.files[2].open()
    assert read_exact(descriptor, 0, len(WEIGHTS)) == WEIGHTS
    os.close(descriptor)
    link = snapshot.parents[3] / "link"
    link.symlink_to(snapshot)
    assert len(scan_directory(link).files) == 3


@pytest.mark.parametrize(
    "target",
    [
        *("../../blobs/../../secret", "../../../secret", "../../blobs/notahash", "../../blobs/sub/" + "a" * 64),
        *("/etc/passwd", "../../../models--other--x/blobs/" + "a" * 64, "config.json"),
    ],
)
def test_a_snapshot_s_link_to_anything_else_is_refused(snapshot: Path, target: str) -> None:
    (snapshot.parents[2] / "secret").write_bytes(b"x")
    (snapshot / "evil").symlink_to(target)
    with pytest.raises(BadDirectoryError, match="evil is a symbolic link"):
        scan_directory(snapshot)


def test_a_blob_that_is_itself_a_link_is_refused(snapshot: Path, tmp_path: Path) -> None:
    blob = snapshot.parents[1] / "blobs" / ("b" * 40)
    blob.unlink()
    (tmp_path / "secret").write_bytes(b"{}")
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(BadDirectoryError, match=r"config\.json could not be read"):
        scan_directory(snapshot)


def test_blobs_folder_that_is_a_link_is_refused(snapshot: Path, tmp_path: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadDirectoryError):
        scan_directory(snapshot)


def test_the_cache_s_own_folder_gets_a_hint(snapshot: Path) -> None:
    cache = snapshot.parents[1]
    for blob in (cache / "blobs").iterdir():
        blob.unlink()
    for link in snapshot.rglob("*"):
        if link.is_symlink():
            link.unlink()
    with pytest.raises(BadDirectoryError) as caught:
        scan_directory(cache)
    assert "snapshots" in str(caught.value.hint)


def test_special_files_are_refused_by_name(model: Path) -> None:
    os.mkfifo(model / "pipe")
    with pytest.raises(BadDirectoryError, match="pipe is a fifo"):
        scan_directory(model)
    (model / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(model)  # a socket's path may be no longer than about 100 bytes
        try:
            server.bind("sock")
        finally:
            os.chdir(here)
        with pytest.raises(BadDirectoryError, match="sock is a socket"):
            scan_directory(model)


def test_missing_directory_and_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadDirectoryError, match="there is no directory"):
        scan_directory(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadDirectoryError, match="is not a directory"):
        scan_directory(tmp_path / "file")


@pytest.mark.parametrize("name", ["a:b", "con.txt", "tab\there", "back\\slash", "dot.", b"not\xffutf8"])
def test_names_that_other_systems_refuse_are_refused(model: Path, name: str | bytes) -> None:
    path = os.path.join(os.fsencode(model), name if isinstance(name, bytes) else name.encode())  # noqa: PTH118
    with open(path, "wb"):
        pass
    with pytest.raises(InputError):
        scan_directory(model)


def test_names_that_differ_in_case_only_are_refused(model: Path) -> None:
    (model / "Config.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="collides"):
        scan_directory(model)


def test_a_file_swapped_for_a_link_after_the_scan_is_not_opened(model: Path) -> None:
    scanned = scan_directory(model)
    file = next(file for file in scanned.files if file.path == "1_Pooling/config.json")
    (model.parent / "secret").write_bytes(b"xxx")
    (model / "1_Pooling" / "config.json").unlink()
    (model / "1_Pooling" / "config.json").symlink_to(model.parent / "secret")
    with pytest.raises(BadDirectoryError, match=r"1_Pooling/config\.json"):
        file.open()
    (model / "1_Pooling" / "config.json").unlink()
    (model / "1_Pooling").rmdir()
    (model.parent / "other").mkdir()
    (model.parent / "other" / "config.json").write_bytes(b"xxx")
    (model / "1_Pooling").symlink_to(model.parent / "other")
    with pytest.raises(BadDirectoryError):
        file.open()
    (model / "1_Pooling").unlink()
    (model / "1_Pooling").mkdir()
    os.mkfifo(model / "1_Pooling" / "config.json")
    with pytest.raises(BadDirectoryError, match="not a regular file"):
        file.open()


def test_read_exact_refuses_to_give_less(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        assert read_exact(descriptor, 3, 4) == b"3456"
        assert read_exact(descriptor, 99, 0) == b""
        with pytest.raises(TruncatedFileError, match="2 bytes before"):
            read_exact(descriptor, 5, 7)
    finally:
        os.close(descriptor)
    with pytest.raises(BadDirectoryError):
        read_exact(descriptor, 0, 1)


def test_no_descriptor_is_left_open(model: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    scan_directory(model)
    (model / "pipe").symlink_to("x")
    with pytest.raises(BadDirectoryError):
        scan_directory(model)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("call", ["fstat", "preadv"])
def test_a_file_that_cannot_be_read_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real, sick = getattr(os, call), (model / "config.json").stat().st_ino
    status = os.fstat

    def fail(descriptor: int, *rest: object) -> object:
        if status(descriptor).st_ino == sick:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, *rest)

    (file,) = (file for file in scan_directory(model).files if file.path == "config.json")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BadDirectoryError, match=r"config\.json.*Input/output error") as caught:
        scan_directory(model)
    assert caught.value.object == "config.json"
    if call == "preadv":
        with pytest.raises(BadDirectoryError, match=r"config\.json.*Input/output error") as caught:
            file.read(100)
        assert caught.value.object == "config.json"


def test_a_folder_that_cannot_be_listed_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sick = os.scandir, (model / "1_Pooling").stat().st_ino

    def fail(descriptor: int) -> object:
        if os.fstat(descriptor).st_ino == sick:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(BadDirectoryError, match=r"1_Pooling.*Input/output error") as caught:
        scan_directory(model)
    assert caught.value.object == "1_Pooling"


def test_a_file_that_is_cut_off_after_it_was_scanned_is_named(model: Path) -> None:
    (file,) = (file for file in scan_directory(model).files if file.path == "config.json")
    (model / "config.json").write_bytes(b"{")
    with pytest.raises(TruncatedFileError, match=r"config\.json") as caught:
        file.read(100)
    assert caught.value.object == "config.json"
