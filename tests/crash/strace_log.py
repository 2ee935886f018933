"""What a process did to files, as ``strace`` recorded it: every call, with its data."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# A leading slash asks for every call whose name has that beginning: which of them there are depends on the processor.
_NAMES: Final = (
    "openat,openat2,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,"
    "fsync,fdatasync,sync_file_range,sync,syncfs,msync,close,lseek,dup,dup3,fcntl,mkdirat,unlinkat,linkat,symlinkat,"
    "/^(open|creat|rename|renameat|renameat2|unlink|mkdir|rmdir|link|symlink|dup2)$,/^v?fork$,/^clone3?$"
)
_LINE: Final = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>)?(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_UNFINISHED: Final = " <unfinished ...>"
_LONGEST: Final = 1 << 26


@dataclass(frozen=True)
class Call:
    """A call that succeeded.

    Attributes:
        name: Of the call.
        arguments: Bytes for texts, numbers for numbers, and the words of everything else.
        result: What it returned.
        began: How many calls had returned when it began.
    """

    name: str
    arguments: tuple[bytes | int | str, ...]
    result: int
    began: int

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(_shown, self.arguments))}) = {self.result}"


def _shown(argument: bytes | int | str) -> str:
    if not isinstance(argument, bytes):
        return str(argument)
    return repr(argument[-60:] if argument.startswith(b"/") else argument[:24])


def unavailable() -> str | None:
    """Why nothing can be recorded here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-f", "-e", "trace=fsync", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()}"


def record(command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> list[Call]:
    """Runs a command to its end, in the folder ``/``, and returns the calls that succeeded, as they returned.

    Args:
        command: The program and its arguments.
        log: Where strace writes.
        environment: Of the command.
    """
    tracer = ["strace", "-f", "-xx", "-s", str(_LONGEST), "-e", "signal=none", "-e", f"trace={_NAMES}", "-o", str(log)]
    done = subprocess.run([*tracer, *command], capture_output=True, cwd="/", env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    with log.open(encoding="ascii") as lines:
        return parse(lines.read())


def parse(text: str) -> list[Call]:
    """The calls of a log."""
    calls: list[Call] = []
    begun: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(text.splitlines()):
        split = _LINE.fullmatch(line)
        assert split is not None, (number, line[:200])
        thread, resumed, rest = split.groups()
        if rest.startswith(("+++", "---")):
            continue
        if rest.endswith(_UNFINISHED):
            begun[thread] = (rest.removesuffix(_UNFINISHED), len(calls))
            continue
        began = len(calls)
        if resumed:
            first, began = begun.pop(thread)
            rest = first + rest
        call = _CALL.match(rest)
        assert call is not None, (number, line[:200])
        name, arguments, result = call.groups()
        if result == "?" or int(result) < 0:
            continue
        calls.append(Call(name, tuple(_argument(word) for word in arguments.split(", ")), int(result), began))
    return calls


def _argument(word: str) -> bytes | int | str:
    text = _TEXT.fullmatch(word)
    if text is not None:
        return bytes.fromhex(text[1].replace("\\x", ""))
    try:
        return int(word, 0)
    except ValueError:
        return word
