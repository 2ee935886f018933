"""A repository with a tiny real language model, made once and copied for every test that wants one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import rblstore

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]


@dataclass(frozen=True)
class Story:
    """base <- a <- b <- c (HEAD -> main), each adding a LoRA of its name; and what it was made from."""

    repo: Any
    model: Any
    folder: Path

    def source(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def _history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("story")
    model = tiny_models.llama()
    tiny_models.save(model, folder / "base")
    tiny_models.save_tokenizer(folder / "base")
    for seed, (name, kind) in enumerate({"a": "lora", "b": "rslora", "c": "lora"}.items(), start=1):
        tiny_models.save_adapter(model, folder / name, kind, seed=seed)
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base")
        for name in "abc":
            repo.commit(name, behaviors={name: folder / name})
    return model, folder


@pytest.fixture
def story(_history: tuple[Any, Path], tmp_path: Path) -> Iterator[Story]:
    model, folder = _history
    shutil.copytree(folder / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        yield Story(repo, model, folder)


@pytest.fixture
def probed(story: Story) -> Story:
    """The same with a probe of two prompts."""
    story.repo.add_probe("two", PROMPTS)
    return story


@pytest.fixture
def unmoved(story: Story) -> Iterator[Callable[[], None]]:
    """Checks, when called and at the end, that no ref moved and nothing lies about."""
    before = story.repo.head, story.repo.branches(), story.repo.operations()

    def check() -> None:
        assert (story.repo.head, story.repo.branches(), story.repo.operations()) == before
        assert not list((story.repo.path / ".rbl" / "tmp").iterdir())

    yield check
    check()
