"""Arguments that are no names: every method that takes a path or a name refuses them by an RblError."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repository_targets import make_history

import rblstore
from rblstore.api import Repository

ODD_PATHS = ("\0", "a\0b", "x" * 5000, "/".join(["y" * 200] * 50), "\udc80\udcff", "loop", "loop/x", "file", "file/x",
"pipe", "",
             "/dev/null", "/proc/self/mem", "missing/missing", "closed/x", "dangling", "~", "%s", "\n",
             "a\nb")  # fmt: skip
ODD_NAMES = ("", "\0", "\udc80", "x" * 100_000, "..", "../x", "refs/heads/main", "HEAD", "@{", "@{1",
"a@{99999999999}", "~", "^",
             "HEAD~-1", "HEAD^99999", "HEAD~999999999", "-", "--", "0" * 64, "f" * 63, "\u0661" * 6, "é", "a b", "\n",
             "\u202e", "HEAD" + "~1" * 50_000, "@" * 50_000, "con", ".rbl", "x/../y", "%", "'", '"', "*", "[",
             "[z-a]")  # fmt: skip


def is_short(error: rblstore.RblError) -> None:
    """Nobody wants their whole argument back."""
    if len(error.message) > 15_000:
        pytest.fail(f"{type(error).__name__} with a message of {len(error.message)} characters: {error.message[:80]}")


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the odd paths are what their names say, the current one."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_bytes(b"file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "closed").mkdir(0o000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_history(tmp_path_factory.mktemp("history"))


WITH_PATH: dict[str, Callable[[Repository, str], Any]] = {
    "open": lambda repo, path: rblstore.open(path).close(),
    "reindex": lambda repo, path: rblstore.reindex(path),
    "load_checkout": lambda repo, path: rblstore.load_checkout(path),
    "identity": lambda repo, path: repo.commit("x", identity=path, author="a"),
    "behavior": lambda repo, path: repo.commit("x", behaviors={"x": path}, author="a"),
    "status": lambda repo, path: repo.status(path),
    "probe": lambda repo, path: repo.add_probe("x", Path(path), author="a"),
    "checkout": lambda repo, path: repo.checkout("HEAD", path),
}  # fmt: skip
WITH_NAME: dict[str, Callable[[Repository, str], Any]] = {
    "resolve": lambda repo, name: repo.resolve(name),
    "log": lambda repo, name: repo.log(name),
    "show": lambda repo, name: repo.show(name),
    "diff": lambda repo, name: repo.diff(name, "HEAD"),
    "branch": lambda repo, name: repo.create_branch(name, author="a"),
    "start": lambda repo, name: repo.create_branch("x", name, author="a"),
    "delete_branch": lambda repo, name: repo.delete_branch(name, author="a"),
    "tag": lambda repo, name: repo.create_tag(name, author="a"),
    "delete_tag": lambda repo, name: repo.delete_tag(name, author="a"),
    "switch": lambda repo, name: repo.switch(name, author="a"),
    "undo": lambda repo, name: repo.undo(name, author="a"),
    "message": lambda repo, name: repo.commit(name, author="a", allow_empty=True),
    "author": lambda repo, name: repo.commit("x", author=name, allow_empty=True),
    "to branch": lambda repo, name: repo.commit("x", author="a", branch=name, allow_empty=True),
    "remove": lambda repo, name: repo.commit("x", author="a", remove=[name]),
    "weights": lambda repo, name: repo.commit("x", author="a", weights={name: 2.0}),
    "only": lambda repo, name: repo.checkout("HEAD", "out", only=name),
    "tensors": lambda repo, name: repo.checkout("HEAD", "out", tensors=[name]),
    "revert": lambda repo, name: repo.revert(name, author="a"),
    "revert behavior": lambda repo, name: repo.revert(behavior=name, author="a"),
    "tensor": lambda repo, name: repo.tensor(name, name),
    "audit": lambda repo, name: repo.audit(name),
    "du": lambda repo, name: repo.du(name),
    "init branch": lambda repo, name: rblstore.init("new", branch=name).close(),
}  # fmt: skip


@pytest.mark.parametrize("method", WITH_PATH)
def test_paths(history: Path, odd: Path, method: str) -> None:
    with rblstore.open(history) as repo:
        for path in ODD_PATHS:
            if (method, path) == ("probe", "pipe"):
                continue  # `--prompts <(command)` is a pipe, too: whoever names one waits for its writer
            try:
                WITH_PATH[method](repo, path)
            except rblstore.RblError as error:
                is_short(error)


def test_where_a_repository_is_to_be(odd: Path) -> None:
    for path in ODD_PATHS:
        try:
            rblstore.init(path).close()
        except rblstore.RblError as error:
            is_short(error)


@pytest.mark.parametrize("method", WITH_NAME)
def test_names(history: Path, odd: Path, method: str) -> None:
    import shutil

    shutil.copytree(history, odd / "store")
    with rblstore.open(odd / "store") as repo:
        for name in ODD_NAMES:
            try:
                WITH_NAME[method](repo, name)
            except rblstore.RblError as error:
                is_short(error)
            else:
                shutil.rmtree(odd / "out", ignore_errors=True)
