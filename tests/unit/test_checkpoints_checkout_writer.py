from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rblstore.checkpoints.checkout_comparison import Difference, compare_directory
from rblstore.checkpoints.checkout_layout import CheckoutFile, CheckoutManifest
from rblstore.checkpoints.checkout_writer import ContentMismatchError, DirectoryWriter, TargetNotEmptyError
from rblstore.checkpoints.new_file import CheckoutWriteError, NoSpaceError
from rblstore.errors import CorruptError, InputError
from rblstore.objects.ids import CommitId, CompositionId, ContentId, IdentityId

FILES = {
    "config.json": b"{}",
    "sub/deep/model.safetensors": bytes(range(256)) * 10,
    "empty": b"",
    "behaviors/a/x": b"x",
}


def sha(data: bytes) -> ContentId:
    return ContentId(hashlib.sha256(data).hexdigest())


def write(writer: DirectoryWriter, files: dict[str, bytes] = FILES) -> None:
    for path, data in files.items():
        writer.write_file(path, [data[:3], memoryview(data)[3:]], sha(data), len(data))


def write_all(target: Path) -> None:
    with DirectoryWriter(target) as writer:
        write(writer)
        writer.commit()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_a_committed_directory_is_there_whole_and_nothing_else(tmp_path: Path, exists: bool, durable: bool) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    with DirectoryWriter(target, durable=durable) as writer:
        write(writer)
        assert not exists or list(target.iterdir()) == []
        assert exists or not target.exists()
        writer.commit()
    assert tree(target) == FILES
    assert list(tmp_path.iterdir()) == [target]
    assert all(not path.is_symlink() and path.stat().st_nlink == 1 for path in target.rglob("*") if path.is_file())


def test_modes_follow_the_mask_and_an_empty_directory_keeps_its_own(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        for name in ("fresh", "kept"):
            if name == "kept":
                (tmp_path / name).mkdir(0o700)
            with DirectoryWriter(tmp_path / name) as writer:
                write(writer)
                building = next(path for path in tmp_path.iterdir() if path.name.startswith(f".{name}.rbl-tmp-"))
                assert stat.S_IMODE(building.stat().st_mode) == 0o700
                writer.commit()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "fresh" / "sub").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "fresh" / "config.json").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with DirectoryWriter(tmp_path / "out") as writer:
        write(writer)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]
    with pytest.raises(ZeroDivisionError), DirectoryWriter(tmp_path / "new") as writer:
        writer.write_file("a", (b"x" * (1 // part) for part in (1, 0)), sha(b""), 9)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_abort_leaves_what_somebody_else_put_there(tmp_path: Path) -> None:
    writer = DirectoryWriter(tmp_path / "out")
    write(writer)
    building = next(tmp_path.iterdir())
    (building / "content" / "sub" / "mine").write_bytes(b"mine")
    writer.abort()
    writer.abort()
    assert tree(building) == {"content/sub/mine": b"mine"}


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling"])
def test_a_target_that_holds_something_is_refused_untouched(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_bytes(b"user's")
    elif kind == "folder":
        target.mkdir()
        (target / ".hidden").write_bytes(b"user's")
    else:
        target.symlink_to(tmp_path / "elsewhere")
        if kind == "link":
            (tmp_path / "elsewhere").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TargetNotEmptyError) as caught:
        DirectoryWriter(target)
    assert (caught.value.code, caught.value.exit_code) == ("target_not_empty", 4)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_directory_and_those_above_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (Path(), Path(".."), tmp_path, Path("/")):
        with pytest.raises(TargetNotEmptyError):
            DirectoryWriter(target)


@pytest.mark.parametrize("late", ["file", "folder", "link"])
def test_what_appears_meanwhile_stays(tmp_path: Path, late: str) -> None:
    target = tmp_path / "out"
    with DirectoryWriter(target) as writer:
        write(writer)
        if late == "file":
            target.write_bytes(b"user's")
        elif late == "folder":
            target.mkdir()
            (target / "note").write_bytes(b"user's")
        else:
            target.symlink_to(tmp_path)
        with pytest.raises(TargetNotEmptyError):
            writer.commit()
    assert list(tmp_path.iterdir()) == [target]
    assert target.is_symlink() == (late == "link")


def test_a_parent_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        DirectoryWriter(tmp_path / "missing" / "out")
    for name in ("x" * 300, "nul\0"):
        with pytest.raises(InputError):
            DirectoryWriter(tmp_path / name)


@pytest.mark.parametrize(
    ("chunks", "size"), [([b"abd"], 3), ([b"ab"], 3), ([b"abcd"], 3), ([b"abc"], 4), ([], 3), ([b"abc", b"", b"d"], 3)]
)
def test_other_bytes_than_recorded_are_refused(tmp_path: Path, chunks: list[bytes], size: int) -> None:
    with pytest.raises(ContentMismatchError, match="a/b") as caught, DirectoryWriter(tmp_path / "out") as writer:
        writer.write_file("a/b", chunks, sha(b"abc"), size)
    assert isinstance(caught.value, CorruptError)
    assert list(tmp_path.iterdir()) == []


def test_an_endless_source_is_stopped_at_the_size(tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 10
        raise AssertionError("read on")

    with pytest.raises(ContentMismatchError), DirectoryWriter(tmp_path / "out") as writer:
        writer.write_file("a", endless(), sha(b""), 25)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "a\0", "con", "a\\b", ".git/hooks/x", "sub/.rbl/x"]
)
def test_paths_that_leave_the_directory_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError), DirectoryWriter(tmp_path / "out") as writer:
        writer.write_file(path, [b""], sha(b""), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_once(tmp_path: Path) -> None:
    with DirectoryWriter(tmp_path / "out") as writer:
        write(writer)
        with pytest.raises(CheckoutWriteError, match="config"):
            write(writer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "place").mkdir()
    with DirectoryWriter(tmp_path / "place" / "out") as writer:
        writer.write_file("sub/a", [b"a"], sha(b"a"), 1)
        content = next((tmp_path / "place").iterdir()) / "content"
        (content / "sub").rename(content / "moved")
        (content / "sub").symlink_to(outside)
        with pytest.raises(CheckoutWriteError):
            writer.write_file("sub/b", [b"b"], sha(b"b"), 1)
    assert list(outside.iterdir()) == []


def test_a_directory_that_was_exchanged_is_not_published(tmp_path: Path) -> None:
    with DirectoryWriter(tmp_path / "out") as writer:
        write(writer)
        building = next(tmp_path.iterdir())
        (building / "content").rename(building / "moved")
        (building / "content").symlink_to("/etc")
        with pytest.raises(CheckoutWriteError):
            writer.commit()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out").is_symlink()


def test_space_is_asked_for_up_front(tmp_path: Path) -> None:
    with DirectoryWriter(tmp_path / "out") as writer:
        writer.require_space(1)
        with pytest.raises(NoSpaceError) as caught:
            writer.require_space(1 << 60)
    assert caught.value.code == "no_space"


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, CheckoutWriteError)],
)
def test_a_failing_disk_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    def failing(descriptor: int, data: object, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    with DirectoryWriter(tmp_path / "out") as writer:
        monkeypatch.setattr(os, "pwrite", failing)
        with pytest.raises(expected):
            writer.write_file("a", [b"a"], sha(b"a"), 1)
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["mkdir", "open", "rename"])
def test_a_failing_step_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, calls = getattr(os, call), []

    def failing(*arguments: object, **options: object) -> object:
        calls.append(call)
        if call == "rename" or len(calls) == 2:
            raise OSError(errno.EIO, "I/O error")
        return real(*arguments, **options)

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(CheckoutWriteError):
        write_all(tmp_path / "out")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    write_all(tmp_path / "out")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, CheckoutManifest]:
    target = tmp_path / "out"
    manifest = CheckoutManifest(
        "adapters",
        CommitId("1" * 64),
        CompositionId("2" * 64),
        IdentityId("3" * 64),
        (),
        tuple(CheckoutFile(path, sha(FILES[path]), len(FILES[path])) for path in sorted(FILES)),
    )
    data = manifest.encode()
    with DirectoryWriter(target) as writer:
        write(writer, FILES | {"rbl-composition.json": data})
        writer.commit()
    return target, manifest


def test_an_untouched_checkout_has_no_differences(checkout: tuple[Path, CheckoutManifest]) -> None:
    target, manifest = checkout
    (target / "__pycache__").mkdir()
    (target / "__pycache__" / "x.pyc").write_bytes(b"")
    (target / "new-but-empty").mkdir()
    assert compare_directory(target, manifest) == []


def test_every_difference_is_named(checkout: tuple[Path, CheckoutManifest]) -> None:
    target, manifest = checkout
    model = target / "sub" / "deep" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[1234] ^= 1
    model.write_bytes(data)
    (target / "config.json").write_bytes(b"{} ")
    (target / "empty").unlink()
    (target / "sub" / "added").symlink_to("/etc/passwd")
    (target / "behaviors" / "a" / "x").unlink()
    (target / "behaviors" / "a" / "x").symlink_to(target / "config.json")
    assert compare_directory(target, manifest) == [
        Difference("behaviors/a/x", "changed"),
        Difference("config.json", "changed"),
        Difference("empty", "missing"),
        Difference("sub/added", "added"),
        Difference("sub/deep/model.safetensors", "changed"),
    ]


def test_folders_and_fifos_in_the_place_of_files_are_changes(checkout: tuple[Path, CheckoutManifest]) -> None:
    target, manifest = checkout
    (target / "empty").unlink()
    os.mkfifo(target / "empty")
    (target / "config.json").unlink()
    (target / "config.json").mkdir()
    assert compare_directory(target, manifest) == [Difference("config.json", "changed"), Difference("empty", "changed")]


def test_a_folder_that_became_a_link_is_not_followed(checkout: tuple[Path, CheckoutManifest]) -> None:
    target, manifest = checkout
    (target / "sub").rename(target.parent / "elsewhere")
    (target / "sub").symlink_to(target.parent / "elsewhere")
    assert Difference("sub/deep/model.safetensors", "changed") in compare_directory(target, manifest)


def test_a_missing_checkout_is_a_typed_error(checkout: tuple[Path, CheckoutManifest]) -> None:
    with pytest.raises(InputError):
        compare_directory(checkout[0] / "missing", checkout[1])


def test_what_has_its_name_stays_though_the_folder_above_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, renamed = os.fsync, []

    def failing(descriptor: int) -> None:
        if renamed:
            raise OSError(errno.EIO, "I/O error")
        real(descriptor)

    rename = os.rename

    def renaming(*arguments: object, **options: object) -> None:
        rename(*arguments, **options)  # type: ignore[arg-type]
        renamed.append(True)

    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(os, "fsync", failing)
    with DirectoryWriter(tmp_path / "out", durable=True) as writer:
        write(writer)
        with pytest.raises(CheckoutWriteError):
            writer.commit()
    monkeypatch.undo()
    assert {path for path in FILES if (tmp_path / "out" / path).read_bytes() == FILES[path]} == set(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
