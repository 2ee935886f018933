"""Ctrl-C, SIGTERM and SIGHUP at chosen moments of real processes: an exit code, one line, and nothing half done.

The processes say over a pipe where they are, or send themselves the signal there: nothing waits for a time to pass.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint

import rblstore

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PATIENCE_SECONDS = 120
SAID = {
    signal.SIGINT: (130, "interrupted", "interrupted; nothing is half done\n"),
    signal.SIGTERM: (143, "terminated", "terminated; nothing is half done\n"),
    signal.SIGHUP: (129, "hung_up", "terminated; nothing is half done\n"),
}
every_signal = pytest.mark.parametrize("number", SAID, ids=[number.name for number in SAID])

# Sends itself a signal when a module is looked for.
WHILE_IMPORTING = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Finder())
from rblstore.cli.main import main
main(sys.argv[3:])
"""

# Says "here" where a function is called for the n-th time, waits for a line, and goes on.
WAITING = """
import os, sys
from importlib import import_module
places = {(module, owner, name): int(count) for module, owner, name, count in
          (place.split(":") for place in sys.argv[1].split(","))}
said, heard = int(sys.argv[2]), int(sys.argv[3])
def patch(module, owner, name, count):
    thing = import_module(module)
    thing = getattr(thing, owner) if owner else thing
    real, calls = getattr(thing, name), [0]
    def waiting(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            os.write(said, f"{name}\\n".encode())
            os.read(heard, 1)
        return real(*args, **kwargs)
    setattr(thing, name, waiting)
for place, count in places.items():
    patch(*place, count)
from rblstore.cli.main import main
main(sys.argv[4:])
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit, and a checkpoint to commit."""
    folder = tmp_path_factory.mktemp("story")
    with rblstore.init(folder / "store") as repo:
        repo.commit("one", identity=write_checkpoint(folder / "model", 40_000, 1))
    write_checkpoint(folder / "another", 40_000, 2)
    return folder


@pytest.fixture
def store(story: Path, tmp_path: Path) -> Path:
    shutil.copytree(story / "store", tmp_path / "store")
    return tmp_path / "store"


def state(store: Path) -> tuple[object, ...]:
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).ok
        return repo.branches(), repo.operations()


class Process:
    """``rbl`` that says where it is, and goes on when told to."""

    def __init__(self, places: str, *arguments: str | Path) -> None:
        said, writing = os.pipe()
        reading, self.heard = os.pipe()
        self.said = os.fdopen(said)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITING, places, str(writing), str(reading), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            pass_fds=(writing, reading),
        )
        os.close(writing)
        os.close(reading)
        self.ended = False

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            self.process.kill()
            self.end()

    def reaches(self, name: str) -> None:
        """Waits until it is in a function."""
        assert self.said.readline() == f"{name}\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def go_on(self) -> None:
        os.write(self.heard, b".")

    def end(self) -> tuple[int, str, str]:
        # A signal that comes just before it waits is seen only when it waits no more.
        with contextlib.suppress(BrokenPipeError):
            self.go_on()
        output, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        self.ended = True
        self.said.close()
        os.close(self.heard)
        return self.process.returncode, output, errors


COMMIT = ("commit", "-m", "two", "--identity")
# Each is a place in a commit before which nothing is to be seen of it, and after it has begun.
PLACES = [
    "rblstore.storage.durable:StagedFile:write:2",
    "rblstore.storage.durable:StagedFile:publish:1",
    "rblstore.storage.durable:StagedFile:publish:2",
    "rblstore.storage.pack_writer:PackWriter:add:1",
]


@pytest.mark.parametrize(("number", "place"), list(zip(cycle(SAID), PLACES, strict=False)))
def test_a_commit_that_is_ended_is_taken_back(story: Path, store: Path, number: signal.Signals, place: str) -> None:
    before = state(store)
    with Process(place, "-C", store, *COMMIT, story / "another") as process:
        process.reaches(place.split(":")[2])
        process.signal(number)
        code, output, errors = process.end()
    assert (code, output, errors) == (SAID[number][0], "", SAID[number][2])
    assert list((store / ".rbl" / "tmp").iterdir()) == []
    assert state(store) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_cut_the_taking_back_short(story: Path, store: Path, number: signal.Signals) -> None:
    before = state(store)
    places = "rblstore.storage.durable:StagedFile:publish:1,rblstore.storage.durable:StagedFile:_unlink:1"
    with Process(places, "-C", store, *COMMIT, story / "another") as process:
        process.reaches("publish")
        process.signal(number)
        process.reaches("_unlink")
        assert list((store / ".rbl" / "tmp").iterdir())
        process.signal(signal.SIGINT)
        process.go_on()
        code, output, errors = process.end()
    assert (code, output, errors) == (SAID[number][0], "", SAID[number][2])
    assert list((store / ".rbl" / "tmp").iterdir()) == []
    assert state(store) == before


def test_a_second_signal_does_not_leave_a_checkout_behind(store: Path, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    writer = "rblstore.checkpoints.checkout_writer:DirectoryWriter"
    places = f"{writer}:finish_file:1,{writer}:_remove:1"
    with Process(places, "-C", store, "checkout", "HEAD", tmp_path / "beside" / "out") as process:
        process.reaches("finish_file")
        process.signal(signal.SIGTERM)
        process.reaches("_remove")
        process.signal(signal.SIGINT)
        process.go_on()
        code, output, errors = process.end()
    assert (code, output, errors) == (143, "", SAID[signal.SIGTERM][2])
    assert list((tmp_path / "beside").iterdir()) == list((store / ".rbl" / "tmp").iterdir()) == []


def test_a_third_one_does_and_leaves_only_what_is_collected(story: Path, store: Path) -> None:
    from rblstore.operations.leftovers import remove_leftovers

    before = state(store)
    places = "rblstore.storage.durable:StagedFile:publish:1,rblstore.storage.durable:StagedFile:_unlink:1"
    with Process(places, "-C", store, *COMMIT, story / "another") as process:
        process.reaches("publish")
        process.signal(signal.SIGTERM)
        process.reaches("_unlink")
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)  # another number: two of one kind may arrive as one
        code, output, errors = process.end()
    assert (code, output) == (143, "")
    assert "Traceback" not in errors
    assert state(store) == before
    with rblstore.open(store) as repo:
        remove_leftovers(repo._store)
    assert list((store / ".rbl" / "tmp").iterdir()) == []


@every_signal
def test_a_checkout_that_is_ended_leaves_nothing(store: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "beside").mkdir()
    place = "rblstore.checkpoints.checkout_writer:DirectoryWriter:finish_file:1"
    with Process(place, "-C", store, "checkout", "HEAD", tmp_path / "beside" / "out", "--json") as process:
        process.reaches("finish_file")
        assert list((tmp_path / "beside").iterdir())
        process.signal(number)
        code, output, errors = process.end()
    exit_code, name, message = SAID[number]
    assert (code, errors) == (exit_code, message)
    document = {"error": message.strip(), "code": name, "object": None, "hint": None, "exit_code": exit_code}
    assert json.loads(output) == document
    assert list((tmp_path / "beside").iterdir()) == list((store / ".rbl" / "tmp").iterdir()) == []


@pytest.mark.parametrize("place", ["rblstore.repository:Store:append_operations:1"])
def test_a_signal_after_the_catalog_has_it_loses_nothing(story: Path, store: Path, place: str) -> None:
    with Process(place, "-C", store, *COMMIT, story / "another") as process:
        process.reaches("append_operations")
        process.signal(signal.SIGTERM)
        assert process.end()[0] == 143
    with rblstore.open(store) as repo:
        assert [entry.message for entry in repo.log()] == ["two", "one"]
        assert repo.fsck(full=True).ok


MODULES = ["rblstore.cli.program", "click", "rblstore.cli.commands.log", "sqlalchemy", "rblstore.operations.log"]


@pytest.mark.parametrize(("number", "module"), list(zip(cycle(SAID), MODULES, strict=False)))
def test_a_signal_while_modules_are_imported_prints_no_traceback(
    store: Path, number: signal.Signals, module: str
) -> None:
    exit_code, name, message = SAID[number]
    for json_wanted in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", WHILE_IMPORTING, module, str(int(number)), "-C", str(store), "log"]
            + ["--json"] * json_wanted,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert (done.returncode, done.stderr) == (exit_code, message)
        assert (json.loads(done.stdout)["code"] == name) if json_wanted else (done.stdout == "")


@every_signal
def test_signals_are_taken_over_before_anything_is_imported_from_elsewhere(number: signal.Signals) -> None:
    """`enum` is what `signal` takes its time for; without site-packages nothing else has asked for it before."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", WHILE_IMPORTING, "enum", str(int(number)), "log"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (SAID[number][0], "", SAID[number][2])


def test_control_c_before_they_are_taken_over_prints_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", WHILE_IMPORTING, "rblstore.cli.signals", str(int(signal.SIGINT)), "log"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_what_is_ignored_from_the_start_stays_ignored(store: Path, number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTING, "rblstore.operations.log", str(int(number)), "-C", str(store), "log"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=PATIENCE_SECONDS,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN) and None,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "one" in done.stdout


AT_THE_END = """
import atexit, os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    atexit.register(os.kill, os.getpid(), number)
from rblstore.cli.main import main
main(sys.argv[1:])
"""


def test_a_signal_when_the_command_is_done_changes_nothing(store: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, "-C", str(store), "log"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    open_now = {master, slave}
    yield master, slave
    for descriptor in open_now:
        try:
            os.close(descriptor)
        except OSError:
            pass


def test_a_terminal_that_goes_away_ends_a_command_with_its_code(
    story: Path, store: Path, terminal: tuple[int, int]
) -> None:
    master, slave = terminal
    before = state(store)
    said, writing = os.pipe()
    reading, heard = os.pipe()
    place = "rblstore.storage.durable:StagedFile:publish:1"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, place, str(writing), str(reading), "-C", store, *COMMIT, story / "another"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=ENVIRONMENT,
        start_new_session=True,
        pass_fds=(writing, reading),
    )
    os.close(slave)
    assert os.read(said, 100) == b"publish\n"
    os.close(master)  # whoever writes to the terminal now gets an error
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=PATIENCE_SECONDS) == 129
    for descriptor in (said, writing, reading, heard):
        os.close(descriptor)
    assert list((store / ".rbl" / "tmp").iterdir()) == []
    assert state(store) == before
