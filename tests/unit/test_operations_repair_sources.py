"""What repair takes from elsewhere: only what has the right digest, whatever else is there."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from repair_stories import Story, content_of, make_story, moved, rewrite, spoil, tree

import rblstore
from rblstore.objects.ids import ContentId
from rblstore.operations import repair_sources
from rblstore.operations.repair import RepairResult
from rblstore.operations.repair_sources import FileSource, PackSource


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return make_story(tmp_path_factory.mktemp("story"))


@pytest.fixture
def story(original: Story, tmp_path: Path) -> Story:
    """The base's pack is gone: tensors, a header, a file kept whole."""
    made = moved(original, tmp_path / "store")
    made.lose_pack(config(made))
    return made


@pytest.fixture
def other(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    return folder


def config(story: Story) -> ContentId:
    return content_of(story, Path("base/config.json"))


def mend(story: Story, *sources: Path) -> RepairResult:
    return rblstore.repair(story.root, sources=sources, apply=True)


class TestFiles:
    def test_names_do_not_matter(self, story: Story, other: Path) -> None:
        deep = other / "a" / "b – c"
        deep.mkdir(parents=True)
        shutil.copy(story.sources / "base" / "model.safetensors", deep / "weights.bin")
        shutil.copy(story.sources / "base" / "config.json", other / "x")
        result = mend(story, other)
        assert result.whole
        places = {Path(one.source).relative_to(other).as_posix() for one in result.restored}
        assert places == {"a/b – c/weights.bin", "x"}

    def test_single_files(self, story: Story, other: Path) -> None:
        shutil.copy(story.sources / "base" / "model.safetensors", other / "m")
        result = mend(story, other / "m")
        assert {one.object for one in result.lost} == {config(story)}
        assert mend(story, story.sources / "base" / "config.json").whole

    def test_other_bytes_of_the_same_size_are_nothing(self, story: Story, other: Path) -> None:
        data = (story.sources / "base" / "config.json").read_bytes()
        (other / "config.json").write_bytes(data[:-1] + b"]")
        weights = bytearray((story.sources / "base" / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (other / "model.safetensors").write_bytes(weights)
        result = mend(story, other)
        assert config(story) in {one.object for one in result.lost}
        assert len(result.lost) == 2

    def test_a_hostile_directory(self, story: Story, other: Path, tmp_path: Path) -> None:
        """Loops, links out of it, pipes, devices' names, names that are no text, headers that lie: passed over."""
        outside = tmp_path / "outside"
        shutil.copytree(story.sources / "base", outside)
        (other / "loop").symlink_to(other)
        (other / "dangling").symlink_to(other / "nowhere")
        (other / "model.safetensors").symlink_to(outside / "model.safetensors")
        (other / "folder").symlink_to(outside)
        os.mkfifo(other / "pipe")
        Path(os.fsdecode(os.fsencode(other) + b"/\xff\xfe")).mkdir()
        Path(os.fsdecode(os.fsencode(other) + b"/\xff\xfe/" + b"\xfd" * 20)).write_bytes(b"{}")
        (other / "lies.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}" * 40)
        (other / "deep.safetensors").write_bytes((100_000).to_bytes(8, "little") + b'{"a":' * 20_000)
        result = mend(story, other)
        assert result.restored == ()
        assert config(story) in {one.object for one in result.lost}
        (Path(os.fsdecode(os.fsencode(other) + b"/\xff\xfe")) / "config").write_bytes(
            (outside / "config.json").read_bytes()
        )
        assert {one.object for one in mend(story, other).restored} == {config(story)}

    def test_nothing_is_loaded(self, story: Story, other: Path) -> None:
        """A pickle is bytes; what it would do when loaded does not happen."""
        marker = other / "ran"
        data = pickle.dumps(Evil(str(marker)))
        (other / "config.json").write_bytes(data.ljust(len((story.sources / "base" / "config.json").read_bytes())))
        (other / "model.safetensors").write_bytes(data)
        mend(story, other)
        assert not marker.exists()

    def test_only_what_has_a_wanted_size_is_read(
        self, story: Story, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file of a terabyte (of holes) costs nothing."""
        shutil.copytree(story.sources / "base", other, dirs_exist_ok=True)
        with (other / "huge.bin").open("wb") as stream:
            stream.truncate(1 << 40)
        read: list[int] = []
        digest_of = repair_sources.digest_of

        def count(descriptor: int, offset: int, length: int, *more: Any) -> ContentId:
            read.append(length)
            return digest_of(descriptor, offset, length, *more)

        monkeypatch.setattr(repair_sources, "digest_of", count)
        assert mend(story, other).whole
        assert max(read) < 1 << 20

    def test_a_hub_cache(self, story: Story, tmp_path: Path) -> None:
        """Snapshots are links to the blobs beside them: the one kind of link that is followed."""
        blobs = tmp_path / "models--a--b" / "blobs"
        snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for number, name in enumerate(("model.safetensors", "config.json")):
            blob = f"{number:040x}"
            shutil.copy(story.sources / "base" / name, blobs / blob)
            (snapshot / name).symlink_to(Path("../../blobs") / blob)
        assert mend(story, snapshot).whole

    def test_a_checkout(self, story: Story, tmp_path: Path) -> None:
        with rblstore.open(story.copy) as repo:
            repo.checkout("main", tmp_path / "out")
        assert mend(story, tmp_path / "out").whole

    def test_too_many_files(self, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repair_sources, "_MAX_FILES", 2)
        for name in "abc":
            (other / name).write_text(name)
        with pytest.raises(rblstore.InputError, match="more than 2 files"):
            list(FileSource(other, None).files())


class Evil:
    """Makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class TestRepositories:
    def test_the_source_is_not_changed(self, story: Story) -> None:
        before = tree(story.copy)
        assert mend(story, story.copy).whole
        assert tree(story.copy) == before

    def test_its_folder_serves_too(self, story: Story) -> None:
        assert mend(story, story.copy / ".rbl").whole

    def test_a_damaged_one_gives_what_it_has(self, story: Story, tmp_path: Path) -> None:
        """No catalog, no log, no format, and the very content that is wanted is damaged there, too."""
        other = moved(Story(story.copy, story.copy, story.sources, story.commits), tmp_path / "clone")
        pack = other.pack_with(config(story))
        data = pack.read_bytes()
        index = int.from_bytes(data[-80:-72], "little")
        at = next(at for at in range(index, len(data), 128) if data[at : at + 32].hex() == config(story))
        spoil(pack, int.from_bytes(data[at + 48 : at + 56], "little") + 1)
        for name in ("catalog.db", "refs.log", "format"):
            (other.folder / name).unlink()
        result = mend(story, other.root)
        assert {one.object for one in result.lost} == {config(story)}
        assert result.restored

    def test_packs_that_lie(self, story: Story, tmp_path: Path) -> None:
        """An index that calls other bytes by the wanted name."""
        other = moved(Story(story.copy, story.copy, story.sources, story.commits), tmp_path / "clone")
        pack = other.pack_with(config(story))
        data = pack.read_bytes()
        index = int.from_bytes(data[-80:-72], "little")
        wanted = bytes.fromhex(config(story))
        names = {data[at : at + 32] for at in range(index, len(data) - 80, 128)} - {wanted}
        rewrite(pack, data[:index] + data[index:].replace(wanted, min(names)).replace(max(names), wanted))
        result = mend(story, other.root)
        assert config(story) in {one.object for one in result.lost}

    def test_the_repository_itself_is_none(self, story: Story) -> None:
        for path in (story.root, story.folder):
            with pytest.raises(rblstore.UsageError, match="to be repaired"):
                rblstore.repair(story.root, sources=[path])

    def test_nothing_is_there(self, story: Story, tmp_path: Path) -> None:
        with pytest.raises(rblstore.NotFoundError) as caught:
            rblstore.repair(story.root, sources=[tmp_path / "nowhere"])
        assert caught.value.code == "no_such_source"
        for name in ("x" * 5000, "a\0b"):
            with pytest.raises(rblstore.NotFoundError):
                rblstore.repair(story.root, sources=[tmp_path / name])

    def test_half_from_each(self, story: Story, other: Path) -> None:
        shutil.copy(story.sources / "base" / "config.json", other / "c")
        result = mend(story, other, story.sources / "base" / "model.safetensors")
        assert result.whole
        assert len({one.source for one in result.restored}) == 2

    def test_its_log_is_read_as_far_as_it_goes(self, story: Story) -> None:
        source = PackSource(story.copy / ".rbl", "copy", ("packs",), 0)
        operations = list(source.operations().values())
        assert [one.sequence for one in operations] == list(range(1, len(operations) + 1))
        assert PackSource(story.root / "nowhere", "nothing", ("packs",), 0).operations() == {}


def test_a_commit_of_the_same_bytes_mends_what_was_set_aside(story: Story, tmp_path: Path) -> None:
    def commit_again() -> None:
        with rblstore.open(story.root) as repo:
            repo.commit("again", identity=story.sources / "base", allow_empty=True)

    with contextlib.suppress(rblstore.CorruptError):  # it notices where it takes the files for changed
        commit_again()  # what the catalog lists is not written a second time
    with rblstore.open(story.root) as repo, pytest.raises(rblstore.CorruptError) as found:
        repo.checkout(story.commits["base"], tmp_path / "out")
    assert "rbl repair --from" in (found.value.hint or "")
    assert not rblstore.repair(story.root, apply=True).whole
    commit_again()
    with rblstore.open(story.root) as repo:
        assert repo.fsck(full=True).ok
        repo.checkout(story.commits["base"], tmp_path / "out")
