"""The progress bar: drawn on a terminal, silent everywhere else."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from cli_story import Story, run
from rich.console import Console

from rblstore.cli.progress import _Bar
from rblstore.operations.progress import ProgressEvent

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "120"}


def _on_a_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Runs ``rbl`` with stderr on a terminal; gives the exit code and what the terminal was sent."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rblstore", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=ENVIRONMENT,
    )
    os.close(terminal)
    sent = bytearray()
    while True:
        try:
            data = os.read(controller, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        sent += data
    os.close(controller)
    return process.wait(), sent.decode()


@pytest.fixture
def target(models: Path, tmp_path: Path) -> tuple[Path, Path]:
    assert run("init", tmp_path / "store").exit_code == 0
    return tmp_path / "store", models / "base"


def test_a_bar_in_bytes_on_a_terminal(target: tuple[Path, Path]) -> None:
    store, base = target
    code, sent = _on_a_terminal("-C", store, "commit", "-m", "base", "--identity", base)
    assert code == 0
    assert "reading " in sent  # which file is seen depends on the clock
    assert "KiB" in sent or "kB" in sent or "bytes" in sent


@pytest.mark.parametrize(
    ("before", "after"), [(["--no-progress"], []), ([], ["--json"])], ids=["--no-progress", "--json"]
)
def test_no_bar_where_none_is_wanted(before: list[str], after: list[str], target: tuple[Path, Path]) -> None:
    store, base = target
    code, sent = _on_a_terminal(*before, "-C", store, "commit", "-m", "base", "--identity", base, *after)
    assert (code, sent) == (0, "")


def test_silence_in_a_pipe(story: Story, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rblstore", "-C", story.store, "checkout", "HEAD", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("checked out ")


def _drawn(bar: _Bar, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    assert bar._progress is not None
    console.print(bar._progress.get_renderable())
    return console.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [80, 60])
def test_a_bar_takes_one_line_whatever_the_file_is_called(width: int) -> None:
    bar = _Bar()
    bar(ProgressEvent("reading behaviors/polite/model-00001-of-00005.safetensors", 100 << 20, 5360 << 20))
    bar.stop()
    (line,) = _drawn(bar, width)
    assert len(line.rstrip()) <= width
    assert line.startswith("reading")
    assert "/5.2 GiB" in line


def test_one_bar_for_all_files_of_an_operation() -> None:
    bar = _Bar()
    for stage, done in (("reading a", 1), ("reading a", 2), ("reading b", 3)):
        bar(ProgressEvent(stage, done, 4))
    assert bar._progress is not None
    (task,) = bar._progress.tasks
    first = task.id
    assert (task.description, task.completed) == ("reading b", 3)
    bar(ProgressEvent("measuring", 1, 9))  # another count begins
    bar.stop()
    (task,) = bar._progress.tasks
    assert task.id != first
    assert (task.completed, task.total) == (1, 9)
