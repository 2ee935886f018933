"""What the commands print fits a terminal of 80 columns, has no tabs, and no empty lines at its ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_story import Story, run
from test_docs import COMMANDS

from rblstore.cli.render.text import environment_lines

_WHOLE_ID = re.compile("[0-9a-f]{64}")  # to be copied, so never cut or wrapped


def _tidy(text: str, *, width: int = 80) -> None:
    lines = text.split("\n")
    assert lines.pop() == "", "the last line has no end"
    assert lines[0], "it begins with an empty line"
    assert lines[-1], "it ends with an empty line"
    for line in lines:
        assert "\t" not in line
        assert line == line.rstrip()
        assert len(line) <= width or _WHOLE_ID.search(line), line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _tidy(run(*name.split(), "--help").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["log"], ["log", "--graph"], ["log", "--graph", "--oneline", "--all"], ["show"],
        ["show", "--only", "behaviors"],
        ["diff"], ["status"], ["audit"], ["branch"], ["tag"], ["op", "log"], ["probe", "list"], ["baseline", "--list"],
        ["baseline", "HEAD~2"], ["fsck"], ["fsck", "--full"], ["reindex"], ["undo"], ["repack"], ["gc"],
        ["gc", "--apply", "--grace", "0"], ["gc", "--restore"],
        ["repack", "--compression", "none", "--dry-run"], ["revert", "HEAD", "-m", "back"],
        ["commit", "-m", "less", "--remove", "brief"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_printed_fits_the_terminal(arguments: list[str], story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBL_AUTHOR", "Ada Lovelace")
    _tidy(story.ok(*arguments))


def test_an_environment_is_wrapped_behind_its_label() -> None:
    lines = environment_lines("environment  ", {f"setting_{index}": "value" for index in range(20)})
    assert len(lines) > 1
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 13) for line in lines[1:])


def test_a_prompt_of_several_lines_is_shown_in_one(story: Story, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(["w5 w17\n\tw80"]))
    story.ok("probe", "add", "lines", "--prompts", tmp_path / "prompts.json")
    text = story.ok("show", "lines")
    assert "text w5 w17\\n\\tw80, tokens" in text
    _tidy(text, width=1000)


def test_no_arguments_show_every_option_of_the_program() -> None:
    assert "-h, --help" in run().stderr
