"""A small repository to be damaged: what the tests of repair share."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from tiny_checkpoints import WIDTH, values, write_adapter, write_base

import rblstore
from rblstore.objects.ids import ContentId, PackId
from rblstore.storage.disk import DiskBackend
from rblstore.storage.pack_format import HEADER_BYTES
from rblstore.storage.pack_reader import PackReader


@dataclass(frozen=True)
class Story:
    """base <- polite (tag v1) <- brief (main), base <- tuned (side): an adapter each, and an overlay.

    Attributes:
        root: The repository.
        copy: Another of it, which nobody touches.
        sources: The checkpoints and adapters that it was made from, by name.
        commits: By subject.
    """

    root: Path
    copy: Path
    sources: Path
    commits: dict[str, str]

    @property
    def folder(self) -> Path:
        """Its ``.rbl``."""
        return self.root / ".rbl"

    def pack_with(self, content: str) -> Path:
        """The file of the pack that holds a content or record."""
        backend = DiskBackend(self.folder)
        for key in sorted(backend.list("packs/")):
            locations = PackReader(backend, PackId(key[-69:-5])).summary().locations
            if content in {location.content for location in locations}:
                return self.folder / key
        raise AssertionError(content)

    def refs(self) -> dict[str, str]:
        """Every ref."""
        with rblstore.open(self.root) as repo, repo._store.catalog.read() as reader:
            return reader.refs("")

    def lose_catalog(self) -> None:
        """Deletes the catalog."""
        (self.folder / "catalog.db").unlink()

    def lose_pack(self, content: str) -> None:
        """Deletes the pack that holds a content or record."""
        self.pack_with(content).unlink()


def rewrite(path: Path, data: bytes) -> None:
    """Writes a file that may be read-only."""
    path.chmod(0o644)
    path.write_bytes(data)


def spoil(path: Path, at: int = HEADER_BYTES) -> None:
    """Turns one bit over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    rewrite(path, bytes(data))


def make_story(folder: Path) -> Story:
    """Makes the repository, and its copy."""
    sources = folder / "sources"
    base = write_base(sources / "base")
    for seed, name in enumerate(("polite", "brief"), start=1):
        write_adapter(sources / name, seed=seed)
    write_base(sources / "tuned", lm_head__weight=values(8, WIDTH, seed=9))
    with rblstore.init(folder / "store") as repo:
        commits = {"base": repo.commit("base", identity=base, license="mit").commit}
        repo.create_branch("side")
        commits["polite"] = repo.commit("polite", behaviors={"polite": sources / "polite"}).commit
        repo.create_tag("v1", message="first")
        commits["brief"] = repo.commit("brief", behaviors={"brief": sources / "brief"}).commit
        commits["tuned"] = repo.commit("tuned", behaviors={"tuned": sources / "tuned"}, branch="side").commit
    shutil.copytree(folder / "store", folder / "copy")
    return Story(folder / "store", folder / "copy", sources, {name: str(id) for name, id in commits.items()})


def moved(story: Story, to: Path) -> Story:
    """The same story elsewhere, to be damaged; its copy and sources stay."""
    shutil.copytree(story.root, to)
    return Story(to, story.copy, story.sources, story.commits)


def tree(root: Path) -> dict[str, str]:
    """Everything in a folder, by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def content_of(story: Story, path: Path) -> ContentId:
    """The content of a file kept whole."""
    return ContentId(hashlib.sha256((story.sources / path).read_bytes()).hexdigest())
