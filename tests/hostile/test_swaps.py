"""R9: directories that another process swaps for symbolic links while a checkout or an import runs.

Nothing is written where a link leads, nothing that somebody else made is deleted, and a checkout either succeeds or
raises an RblError. What is stored of a source is what some file in it was, never what a link led to.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_checkpoints
from fuzz_targets import scratch
from test_hostile_names import everything
from trials import Trials

import rblstore

_EXCHANGE = 2
_CURRENT = -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: str, other: str, *, within: int = _CURRENT) -> None:
    """Gives each of two files or folders the other's name, in one step; an error does nothing.

    Args:
        one: The first, in the folder that ``within`` is a descriptor of.
        other: The other's whole path.
        within: The current directory, or the folder of the first.
    """
    _libc.renameat2(within, os.fsencode(one), _CURRENT, os.fsencode(other), _EXCHANGE)


@contextlib.contextmanager
def opened(path: str, *components: str) -> Iterator[int]:
    """A descriptor of a folder, through no link: what races must not itself do harm where its links lead."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(path, flags)
    try:
        for component in components:
            inner = os.open(component, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module", autouse=True)
def _can_exchange(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("exchange")
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    if not hasattr(_libc, "renameat2"):
        pytest.skip("the C library has no renameat2")
    exchange(str(folder / "a"), str(folder / "b"))
    if (folder / "a").read_text() != "b":
        pytest.skip("this file system cannot exchange two files")


@contextlib.contextmanager
def beside(deed: Callable[[random.Random], None], seed: int) -> Iterator[None]:
    """Does something over and over in another process while the block runs."""
    process = os.fork()
    if process == 0:
        chance = random.Random(seed)
        try:
            while True:
                with contextlib.suppress(OSError):
                    deed(chance)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


_INSIDE = (
    ("content",), ("content", "behaviors"), ("content", "behaviors", "polite"), ("content", "sub"), ("content",
    "config.json"),
)  # fmt: skip


class _Arena:
    """``work/out`` is checked out; ``canary`` is where links lead; ``elsewhere`` takes the place of ``work``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.canary = root / "canary"
        (self.canary / "behaviors" / "polite").mkdir(parents=True)
        (self.canary / "content" / "sub").mkdir(parents=True)
        for path in (
            "config.json",
            "behaviors/polite/adapter_config.json",
            "content/config.json",
            "content/sub/x.json",
        ):
            (self.canary / path).write_text("sings")
        self.work.mkdir()
        (self.work / "mine.txt").write_text("mine")
        (root / "elsewhere").symlink_to("work-beside")
        (root / "work-beside").mkdir()
        (root / "work-beside" / "mine.txt").write_text("mine")
        for name in ("link-0", "link-1"):
            (root / name).symlink_to(self.canary)
        (root / "link-deep").symlink_to(self.canary / "content")
        self.before = everything(self.canary)

    def swap(self, chance: random.Random) -> None:
        """One move of whoever races."""
        root, work = str(self.root), str(self.work)
        where = chance.randrange(8)
        if where == 0:
            exchange(work, f"{root}/elsewhere")
            exchange(work, f"{root}/elsewhere")
            return
        if where == 1:
            with contextlib.suppress(FileExistsError):
                Path(work, "out").symlink_to(self.canary)
            Path(work, "out").unlink()
            return
        for entry in list(os.scandir(work)):
            if entry.name.startswith(".out.rbl-tmp-"):
                self._swap_inside(entry.path, chance)

    def _swap_inside(self, folder: str, chance: random.Random) -> None:
        link = f"{self.root}/{chance.choice(('link-0', 'link-1', 'link-deep'))}"
        *above, name = chance.choice(_INSIDE)
        with opened(folder, *above) as within:
            exchange(name, link, within=within)
            for _ in range(chance.choice((0, 0, 30, 300))):
                os.getppid()
            if chance.random() < 0.8:
                exchange(name, link, within=within)
        if chance.random() < 0.02:
            note = f"note-{os.getpid()}-{chance.randrange(1 << 40)}"
            with opened(folder, "content") as within:
                os.close(os.open(note, os.O_CREAT | os.O_EXCL, dir_fd=within))
            with open(f"{self.root}/notes", "a") as log:
                log.write(f"{note}\n")

    def check(self) -> None:
        """What must hold after each race."""
        assert everything(self.canary) == self.before, "something was written, changed or deleted where a link led"
        for name in ("work", "work-beside"):
            folder = next(path for path in (self.root / name, self.root / "elsewhere") if (path / "mine.txt").exists())
            assert (folder / "mine.txt").read_text() == "mine"
        noted = (self.root / "notes").read_text().split() if (self.root / "notes").exists() else []
        if noted:
            kept = {name for _, _, files in os.walk(self.root) for name in files}
            assert set(noted) <= kept, "a file that somebody else made is gone"


def _part_of(data: bytes, whole: bytes) -> bool:
    """Whether a file is another, or what there is of it before the rest is written: shorter, or zeros in its place."""
    return len(data) <= len(whole) and all(mine in (0, theirs) for mine, theirs in zip(data, whole, strict=False))


def _restore(arena: _Arena) -> None:
    """The arena as it was, what the race left behind swept away."""
    shutil.rmtree(arena.root)
    arena.root.mkdir()
    arena.__init__(arena.root)  # type: ignore[misc]


@pytest.fixture
def folder() -> Iterator[Path]:
    found = scratch()
    yield found
    shutil.rmtree(found)


@pytest.mark.slow
def test_checkouts(folder: Path) -> None:
    base = tiny_checkpoints.write_base(folder / "base")
    (base / "sub").mkdir()
    (base / "sub" / "x.json").write_text("{}")
    polite = tiny_checkpoints.write_adapter(folder / "polite")
    with rblstore.init(folder / "store") as repo, Trials("R9", "races with a checkout", quick=1000, full=10_000) as run:
        repo.commit("base", identity=base, behaviors={"polite": polite}, author="Ada")
        repo.checkout("HEAD", folder / "right")
        right = everything(folder / "right")
        stored = [path.read_bytes() for path in (folder / "right").rglob("*") if path.is_file()]
        (folder / "arena").mkdir()
        arena = _Arena(folder / "arena")
        for number in run:
            _race(repo, arena, run, right, stored)
            if number % 10 == 9:  # what the other process left where it died piles up
                arena.check()
                _restore(arena)
        if run.done >= 500:
            assert run.counts.get("as it should be", 0) > run.done // 100
            assert run.counts.get("refused", 0) > run.done // 20


def _race(repo: rblstore.Repository, arena: _Arena, run: Trials, right: dict[str, str], stored: list[bytes]) -> None:
    with beside(arena.swap, run.moment.randrange(1 << 32)):
        try:
            repo.checkout("HEAD", arena.work / "out")
        except rblstore.RblError as error:
            run.count("refused")
            run.count(error.code)
        else:
            run.count("succeeded")
    assert everything(arena.canary) == arena.before
    for where in ("work", "work-beside", "elsewhere"):
        out = arena.root / where / "out"
        if out.is_dir() and not out.is_symlink():
            written = {
                path: state for path, state in everything(out).items() if not Path(path).name.startswith("note-")
            }
            links = {path for path in written if written[path].startswith("/")}
            # What the other process moves about in there is its own to answer for: parts of earlier checkouts, too. But
            # no file has other bytes than were stored, but for those that had not come when it was taken away.
            for path in written.keys() - links:
                data = (out / path).read_bytes() if (out / path).is_file() else b""
                assert any(_part_of(data, whole) for whole in stored), f"{path} has bytes that are not stored"
            run.count("as it should be", written == right)
            out.rename(arena.root / f"kept-{run.done}-{where}")  # with what others put into it


@pytest.mark.slow
def test_imports(folder: Path) -> None:
    template = folder / "template"
    for seed in range(2):
        source = tiny_checkpoints.write_base(template / f"source-{seed}", seed=seed)
        (source / "sub").mkdir()
        (source / "sub" / "x.json").write_text(f'{{"n": {seed}}}')
        (source / "config.json").write_text(f'{{"model_type": "llama", "n": {seed}}}')
    (template / "secret").mkdir()
    (template / "secret" / "x.json").write_text('{"secret": 1}')
    (template / "secret" / "config.json").write_text('{"secret": 2}')
    (template / "link").symlink_to(folder / "arena" / "secret")
    (template / "file-link").symlink_to(folder / "arena" / "secret" / "x.json")
    stolen = set(everything(template / "secret").values())
    fair = {state for seed in range(2) for state in everything(template / f"source-{seed}").values()}
    arena = folder / "arena"
    first, second, link, file_link = (str(arena / name) for name in ("source-0", "source-1", "link", "file-link"))

    def swap(chance: random.Random) -> None:
        above, name, other = chance.choice((
            ((), "", second),
            ((), "model.safetensors", f"{second}/model.safetensors"),
            ((), "config.json", f"{second}/config.json"),
            ((), "sub", link),
            ((), "config.json", file_link),
            (("sub",), "x.json", file_link),
        ))  # fmt: skip
        if not name:
            exchange(first, other)
            exchange(first, other)
            return
        with opened(first, *above) as within:
            exchange(name, other, within=within)
            for _ in range(chance.choice((0, 100, 1000, 5000))):
                os.getppid()
            exchange(name, other, within=within)
        for _ in range(chance.choice((0, 5000, 50_000))):
            os.getppid()

    with rblstore.init(folder / "store") as repo, Trials("R9", "races with an import", quick=120, full=2000) as run:
        for number in run:
            shutil.copytree(template, arena, symlinks=True)
            before = repo.head
            with beside(swap, run.moment.randrange(1 << 32)):
                try:
                    repo.commit(f"base {number}", identity=first, author="Ada", allow_empty=True)
                except rblstore.RblError as error:
                    run.count(error.code)
            if repo.head != before:
                run.count("succeeded")
                repo.checkout("HEAD", folder / "out")
                taken = everything(folder / "out")
                del taken["rbl-composition.json"]
                assert not stolen & set(taken.values())
                assert set(taken.values()) <= fair
                shutil.rmtree(folder / "out")
            shutil.rmtree(arena)
        assert run.done < 50 or run.counts.get("succeeded", 0) > 0
