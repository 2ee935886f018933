"""What holds for every command: exit codes, documents, streams, laziness, pipes, safe text."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rblstore import errors
from rblstore.cli.invocation import Invocation
from rblstore.cli.program import rbl
from rblstore.cli.render.text import columns, number, printable, size
from rblstore.cli.verb import Verb


def run(*arguments: str) -> Result:
    return CliRunner().invoke(rbl, list(arguments), prog_name="rbl")


class Refusing:
    """A repository whose every method fails in one way."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        def method(*_: object, **__: object) -> None:
            raise self._error

        return method


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> Result:
    monkeypatch.setattr(Invocation, "repository", lambda _: Refusing(error))
    return run(*arguments)


FAMILIES = [
    (errors.RblError, 1),
    (errors.InputError, 1),
    (errors.NotFoundError, 1),
    (errors.NothingChangedError, 1),
    (errors.UsageError, 2),
    (errors.NoRepositoryError, 3),
    (errors.ConflictError, 4),
    (errors.DivergedError, 5),
    (errors.CorruptError, 6),
    (errors.LockedError, 7),
    (errors.BadSignatureError, 8),
]


@pytest.mark.parametrize(("family", "code"), FAMILIES)
def test_an_error_is_a_message_a_hint_and_its_exit_code(
    family: type[errors.RblError], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = failing_with(monkeypatch, family("it broke", object="x", hint="mend it"), "log")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: it broke\nhint: mend it\n"


@pytest.mark.parametrize(("family", "code"), FAMILIES)
def test_with_json_an_error_is_a_document_too(
    family: type[errors.RblError], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = failing_with(monkeypatch, family("it broke", object="x", hint="mend it"), "log", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == {
        "error": "it broke",
        "code": family.code,
        "object": "x",
        "hint": "mend it",
        "exit_code": code,
    }
    assert result.stderr.startswith("error: it broke\n")


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.ENOSPC, "no_space", "the disk is full: /x/y"),
        (errno.EDQUOT, "no_space", "the disk quota is used up: /x/y"),
        (errno.EACCES, "permission_denied", "permission denied: /x/y"),
        (errno.EROFS, "permission_denied", "the file system is read-only: /x/y"),
        (errno.ENOENT, "not_found", "no such file or directory: /x/y"),
        (errno.EIO, "system_error", "Input/output error: /x/y"),
    ],
)
def test_what_the_system_refuses_is_an_error_of_ours(
    number: int, code: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = failing_with(monkeypatch, OSError(number, os.strerror(number), "/x/y"), "log", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["code"], document["error"]) == (1, code, says)


def test_an_interrupt_exits_130_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing_with(monkeypatch, KeyboardInterrupt(), "log")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted; nothing is half done\n")
    result = failing_with(monkeypatch, KeyboardInterrupt(), "log", "--json")
    assert (result.exit_code, json.loads(result.stdout)["code"]) == (130, "interrupted")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-command"], "there is no command 'no-such-command'"),
        (["comit"], "did you mean commit?"),
        (["log", "--no-such-option"], "--no-such-option"),
        (["log", "-n", "many"], "'many' is not a valid integer"),
        (["log", "-n", "-1"], "-1 is not in the range"),
        (["commit"], "Missing option '-m'"),
        (["commit", "-m", "x", "--behavior", "polite"], "'polite' is not NAME=DIR"),
        (["commit", "-m", "x", "--behavior", "a=1", "--behavior", "a=2"], "--behavior names 'a' twice"),
        (["commit", "-m", "x", "--weight", "a=heavy"], "'heavy' is not a number"),
        (["commit", "-m", "x", "--identity", ""], "a path cannot be empty"),
        (["checkout", "HEAD"], "Missing argument 'DIR'"),
        (["checkout", "HEAD", "out", "--form", "onnx"], "'onnx' is not one of"),
        (["revert"], "either a COMMIT or --behavior NAME"),
        (["revert", "HEAD", "--behavior", "a"], "either a COMMIT or --behavior NAME"),
        (["revert", "HEAD", "--no-verify", "--probe", "p"], "--no-verify excludes"),
        (["revert", "HEAD", "--tolerance", "-1"], "-1.0 is not in the range"),
        (["branch", "-d", "a", "b"], "nothing else goes with it"),
        (["tag", "-m", "x"], "-m goes with the name"),
        (["switch", "-c", "--orphan", "x"], "exclude each other"),
        (["switch", "x", "HEAD"], "START goes with -c"),
        (["op"], "Missing command"),
        (["-C", "/no/such/directory", "log"], "/no/such/directory"),
    ],
)
def test_a_command_line_that_cannot_be_read_exits_2(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Invocation, "repository", lambda _: Refusing(AssertionError("it ran")))
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "hint: See: rbl" in result.stderr
    result = run(*arguments, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["code"], document["exit_code"]) == (2, "usage", 2)


def test_no_arguments_show_the_help_and_exit_2() -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "commit" in result.stderr


def test_messages_cannot_drive_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing_with(monkeypatch, errors.RblError("a\x1b[2Jb\u202ec\x9bd\re"), "log")
    assert result.stderr == "error: a\\x1b[2Jb\\u202ec\\x9bd\\re\n"
    assert printable({"k\x07": ["\x1b", 1, None, "line\nnext\ttab ü"]}) == {
        "k\\x07": ["\\x1b", 1, None, "line\nnext\ttab ü"]
    }


def test_sizes_and_numbers_for_people() -> None:
    assert [size(count) for count in (0, 999, 1024, 1536, 536 << 20, 3 << 50)] == [
        "0 B", "999 B", "1.0 KiB", "1.5 KiB", "536.0 MiB", "3072.0 TiB",
    ]  # fmt: skip
    assert [number(value) for value in (None, 0.0, 1.0, -2.0, 0.12345, 1.5e-9, 1e22)] == [
        "-", "0", "1", "-2", "0.1235", "1.5e-09", "1e+22",
    ]  # fmt: skip
    assert columns([("a", "b"), ("ccc", "")], header=("x", "yy")) == ["x    yy", "a    b", "ccc"]


def test_every_command_is_a_verb_with_an_example() -> None:
    for words, command in all_commands():
        assert isinstance(command, Verb), words
        assert command.example.strip().startswith("rbl "), words


def all_commands() -> list[tuple[tuple[str, ...], Any]]:
    import click

    found: list[tuple[tuple[str, ...], Any]] = []

    def walk(words: tuple[str, ...], group: click.Group) -> None:
        context = click.Context(group, info_name="rbl")
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                walk((*words, name), command)
            else:
                found.append(((*words, name), command))

    walk((), rbl)
    return found


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def python(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT, **kwargs
    )


HEAVY = ("torch", "numpy", "rich", "alembic", "yaml", "transformers", "peft", "sqlalchemy", "safetensors")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["commit", "--help"], ["revert", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from rblstore.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as done: assert not done.code\n"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["rblstore", "rblstore.cli.main"])
def test_the_module_runs_as_a_program(module: str, tmp_path: Path) -> None:
    done = python("-m", module, "log", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["code"] == "no_repository"
    assert done.stderr.startswith("error: ")


MANY_LINES = """
import sys
from rblstore.cli.invocation import Invocation
from rblstore.cli.main import main

class Entry:
    def as_json(self):
        return dict(commit="0" * 64, composition="1" * 64, parents=[], author="a", time="t", message="m" * 2000,
                    refs=[], identity="2" * 64, slots=[], verifications=[])

class Repository:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def log(self, *_, **__): return [Entry()] * 2000

Invocation.repository = lambda _: Repository()
main(sys.argv[1:])
"""


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MANY_LINES, "log"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"commit 000000000000")
    process.stdout.close()
    errors_written = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), errors_written) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", MANY_LINES, "log"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full")


WAITING = """
import signal, sys
from rblstore.cli.invocation import Invocation
from rblstore.cli.main import main

class Repository:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def log(self, *_, **__):
        print("ready", file=sys.stderr, flush=True)
        signal.pause()

Invocation.repository = lambda _: Repository()
main(["log"])
"""


def test_control_c_leaves_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        output, errors_written = process.communicate(timeout=60)
    assert (process.returncode, output, errors_written) == (130, "", "interrupted; nothing is half done\n")


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Invocation, "repository", lambda _: Refusing(errors.RblError("it broke")))
    assert "\x1b[" not in run("log").stderr
    coloured = CliRunner().invoke(rbl, ["log"], color=True).stderr
    assert "\x1b[31m" in coloured
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(variable, value)
        assert "\x1b[" not in CliRunner().invoke(rbl, ["log"], color=True).stderr
        monkeypatch.delenv(variable)
