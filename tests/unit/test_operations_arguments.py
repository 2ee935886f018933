"""Arguments that Python would take for something else than they are meant to be."""

from __future__ import annotations

from pathlib import Path

import pytest

import rblstore


@pytest.mark.parametrize("author", ["Eve\nparent: 0", "tab\there", "  ", "\x1b[31mred"])
def test_an_author_is_one_line(tmp_path: Path, author: str) -> None:
    with rblstore.init(tmp_path) as repo:
        with pytest.raises(rblstore.UsageError, match="one short line"):
            repo.switch("other", orphan=True, author=author)
        assert len(repo.operations()) == 1


def test_text_is_no_list_of_names(tmp_path: Path) -> None:
    with rblstore.init(tmp_path) as repo, pytest.raises(rblstore.UsageError, match="list of names"):
        repo.commit("less", remove="a")
