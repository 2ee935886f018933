"""refs.log: what a crash leaves is passed over and cut, anything else is corruption; and two at once lose nothing."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rblstore.errors import LockedError
from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import OperationId
from rblstore.storage import locks
from rblstore.storage.durable import WriteError
from rblstore.storage.pack_format import checksum
from rblstore.storage.refs_log import (
    CorruptLogError,
    ParsedLog,
    RefsLog,
    encode_line,
    intact_operations,
    parse_log,
    read_lines,
)

TIME = "2026-01-02T03:04:05Z"


def history(count: int, padding: int = 0) -> list[Operation]:
    """Operations that follow from one another."""
    made: list[Operation] = []
    for sequence in range(1, count + 1):
        previous = OperationId(Operation.id_of(made[-1].encode())) if made else None
        changes = (RefChange("refs/heads/main", None if sequence == 1 else "0" * 64, "0" * 64),)
        made.append(Operation(sequence, previous, f"op {sequence}" + "." * padding, changes, None, "A", TIME))
    return made


def lines_of(operations: list[Operation]) -> list[bytes]:
    lines: list[bytes] = []
    for operation in operations:
        lines.append(encode_line(operation, lines[-1] if lines else None))
    return lines


def with_checksum(rest: bytes) -> bytes:
    return f"{checksum(rest):016x} ".encode() + rest + b"\n"


@pytest.fixture
def log(tmp_path: Path) -> RefsLog:
    return RefsLog(tmp_path / "refs.log")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "refs.log"


def test_a_line_is_what_the_format_says() -> None:
    first, second = history(2)
    one = encode_line(first, None)
    check, previous, sequence, json = one.removesuffix(b"\n").split(b" ", 3)
    assert check.decode() == f"{checksum(one[17:-1]):016x}"
    assert (previous, sequence) == (b"0" * 64, b"1")
    assert hashlib.sha256(b"rblstore/operation/1\n" + json).hexdigest() == second.previous
    two = encode_line(second, one)
    assert two.split(b" ")[1].decode() == hashlib.sha256(one[:-1]).hexdigest()
    assert two == encode_line(second, one[:-1])


def test_a_log_reads_as_it_was_appended(log: RefsLog, path: Path) -> None:
    operations = history(5)
    assert log.last() is None
    assert log.read() == ParsedLog((), 0, False)
    with log.locked() as writer:
        assert writer.last_sequence == 0
        writer.append(operations[:2])
        assert writer.last_sequence == 2
        writer.append(operations[2:3])
    with log.locked() as writer:
        assert writer.last_sequence == 3
        writer.append(operations)
        writer.append([])
        assert writer.last_sequence == 5
        assert log.read().operations == tuple(operations)
    data = path.read_bytes()
    assert data == b"".join(lines_of(operations))
    assert log.read() == ParsedLog(tuple(operations), len(data), False) == parse_log(data)
    assert log.last() == (5, lines_of(operations)[-1][:-1])


@pytest.mark.parametrize("padding", [0, 5_000, 20_000])
def test_the_last_line_is_found_whatever_its_length(log: RefsLog, path: Path, padding: int) -> None:
    lines = lines_of(history(4, padding))
    path.write_bytes(b"".join(lines))
    assert log.last() == (4, lines[3][:-1])
    path.write_bytes(b"".join(lines[:3]) + lines[3][:-1])
    assert log.last() == (3, lines[2][:-1])
    path.write_bytes(lines[0])
    assert log.last() == (1, lines[0][:-1])


def test_the_last_line_is_found_by_reading_the_end_alone(
    log: RefsLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"".join(lines_of(history(300))))
    assert path.stat().st_size > 100_000
    read = []
    real = os.pread

    def note(descriptor: int, length: int, offset: int) -> bytes:
        read.append(length)
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", note)
    assert log.last() is not None
    assert sum(read) <= 16 << 10


def test_every_torn_tail_is_passed_over_and_cut(log: RefsLog, path: Path) -> None:
    operations = history(3)
    lines = lines_of(operations)
    whole = b"".join(lines[:2])
    tails = [lines[2][:length] for length in (1, 15, 16, 17, 50, 90, len(lines[2]) - 1)]
    tails += [b"\n", b"\0" * 50, b"\0" * 50 + b"\n", lines[2][:20] + b"\0" * 30 + b"\n", lines[2].replace(b"A", b"B")]
    for tail in tails:
        path.write_bytes(whole + tail)
        assert log.read() == ParsedLog(tuple(operations[:2]), len(whole), True)
        assert log.last() == (2, lines[1][:-1])
        with log.locked() as writer:
            writer.append(operations)
        assert path.read_bytes() == b"".join(lines)


def test_a_torn_first_line_is_an_empty_log(log: RefsLog, path: Path) -> None:
    (operation,) = history(1)
    line = encode_line(operation, None)
    for tail in (line[:-1], line[:5], line.replace(b"A", b"B")):
        path.write_bytes(tail)
        assert log.last() is None
        assert log.read() == ParsedLog((), 0, True)
        with log.locked() as writer:
            writer.append([operation])
        assert path.read_bytes() == line


def test_every_flipped_byte_before_the_last_line_is_corruption_that_names_its_line() -> None:
    lines = lines_of(history(3))
    data = b"".join(lines)
    for position in range(len(lines[0]) + len(lines[1]) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 0x04
        number = 1 if position < len(lines[0]) else 2
        with pytest.raises(CorruptLogError, match=f"line {number}:"):
            parse_log(bytes(flipped))


@pytest.mark.parametrize("before", ["the last line", "the end"])
def test_a_lost_newline_is_no_torn_tail(before: str, tmp_path: Path) -> None:
    """No crash turns a newline into something else: what it ended was acknowledged, and is not cut."""
    operations = history(3)
    one, two, three = lines_of(operations)
    damaged = one + two[:-1] + b"?" + three if before == "the last line" else one + two + three[:-1] + b"?"
    with pytest.raises(CorruptLogError, match="its end") as caught:
        parse_log(damaged)
    assert "repair" in str(caught.value.hint)
    whole = 1 if before == "the last line" else 2
    assert read_lines(damaged)[0].operations == tuple(operations[:whole])
    assert intact_operations(damaged) == tuple(operations)
    # A catalog that has them writes them anew; one that does not must not cut them.
    path = tmp_path / "refs.log"
    path.write_bytes(damaged)
    with RefsLog(path).locked() as writer:
        if whole < 2:
            with pytest.raises(CorruptLogError, match="does not have"):
                writer.append(operations[:2])
            assert path.read_bytes() == damaged
    with RefsLog(path).locked() as writer:
        writer.append(operations)
    assert path.read_bytes() == one + two + three


def broken_chains() -> dict[str, tuple[bytes, int]]:
    one, two, three = lines_of(history(3))
    other = lines_of(history(3, padding=1))
    return {
        "a line missing": (one + three, 2),
        "the first line missing": (two + three, 1),
        "a line twice": (one + two + two, 3),
        "another history": (one + other[1], 2),
        "a gap in the sequence": (one + with_checksum(two[17:-1].replace(b" 2 ", b" 3 ")), 2),
        "another sequence than the operation's": (
            one + with_checksum(hashlib.sha256(one[:-1]).hexdigest().encode() + b" 2 " + three.split(b" ", 3)[3][:-1]),
            2,
        ),
        "an operation of another history": (
            one + with_checksum(two[17:-1].split(b"{")[0] + other[1][17:-1].split(b" ", 2)[2]),
            2,
        ),
        "no record": (with_checksum(b"0" * 64 + b" 1 {}"), 1),
        "no JSON": (with_checksum(b"0" * 64 + b" 1 \xff"), 1),
        "deep JSON": (with_checksum(b"0" * 64 + b" 1 " + b"[" * 100_000), 1),
        "no parts": (with_checksum(b"word"), 1),
        "a signed sequence": (with_checksum(b"0" * 64 + b" +1 {}"), 1),
        "a padded sequence": (with_checksum(b"0" * 64 + b" 01 {}"), 1),
        "an endless sequence": (with_checksum(b"0" * 64 + b" " + b"1" * 5000 + b" {}"), 1),
        "not canonical": (with_checksum(one[17:-1].replace(b'{"author"', b'{ "author"')), 1),
    }


@pytest.mark.parametrize("name", broken_chains())
def test_a_line_that_does_not_follow_is_corruption_though_its_checksum_is_right(name: str) -> None:
    data, number = broken_chains()[name]
    with pytest.raises(CorruptLogError, match=f"line {number}:"):
        parse_log(data)


def test_damage_near_the_end_is_not_cut(log: RefsLog, path: Path) -> None:
    lines = lines_of(history(3))
    damaged = lines[1].replace(b"A", b"B")
    for tail in (lines[0] + damaged + b"torn", lines[0] + damaged + lines[2].replace(b"A", b"B")):
        path.write_bytes(tail)
        with pytest.raises(CorruptLogError):
            log.last()
        with pytest.raises(CorruptLogError), log.locked():
            pass
        assert path.read_bytes() == tail


def test_what_does_not_follow_is_not_appended(log: RefsLog, path: Path) -> None:
    operations, other = history(4), history(4, padding=1)
    with log.locked() as writer:
        writer.append(operations[:2])
        before = path.read_bytes()
        jump = replace(operations[2], sequence=4)
        for wrong in ([jump], operations[3:], other[2:], other[1:2], [operations[2], operations[2], other[3]]):
            with pytest.raises(CorruptLogError):
                writer.append(wrong)
            assert path.read_bytes() == before
        writer.append(operations[2:])
    assert log.read().operations == tuple(operations)


def test_a_refused_append_leaves_the_log_and_ends_the_writer(
    log: RefsLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = history(2)
    with log.locked() as writer:
        writer.append(operations[:1])
        before = path.read_bytes()

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(WriteError, match="Input/output"):
            writer.append(operations)
        monkeypatch.undo()
        assert path.read_bytes() == before
        with pytest.raises(WriteError, match="earlier"):
            writer.append(operations)
    with log.locked() as writer:
        writer.append(operations)
    assert log.read().operations == tuple(operations)


def test_one_fsync_whatever_is_appended(log: RefsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.locked() as writer:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", synced.append)
        writer.append(history(20))
    assert len(synced) == 1


def test_the_lock_is_exclusive_and_ends_with_the_block(log: RefsLog, path: Path) -> None:
    second = RefsLog(path)
    with log.locked():
        with pytest.raises(LockedError), second.locked(wait_seconds=0):
            pass
        assert second.read().operations == ()
    with second.locked(wait_seconds=0):
        pass


def test_a_link_in_place_of_the_log_is_not_followed(log: RefsLog, path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(WriteError), log.locked():
        pass
    assert (tmp_path / "target").read_bytes() == b""


def append_some(path: Path, count: int) -> None:
    log = RefsLog(path)
    operations = history(count)
    for sequence in range(1, count + 1):
        with log.locked() as writer:
            writer.append(operations[:sequence])


def test_several_processes_append_one_history_while_another_reads(log: RefsLog, path: Path) -> None:
    operations = history(30)
    path.write_bytes(b"torn")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_some, args=(path, 30)) for _ in range(3)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        parsed = log.read()
        assert parsed.operations == tuple(operations[: len(parsed.operations)])
        assert len(parsed.operations) >= seen
        seen = len(parsed.operations)
        last = log.last()
        assert last is None or last[0] >= seen
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert path.read_bytes() == b"".join(lines_of(operations))


def test_a_line_without_an_end_takes_no_memory(log: RefsLog, path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptLogError, match="longer than any line may be"):
            log.last()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_thread_that_reads_waits_for_another_that_writes_through_the_same_log(
    log: RefsLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = history(2)
    with log.locked() as writer:
        writer.append(operations)
    whole = path.read_bytes()
    waiting, found = threading.Event(), []

    def acquire(*arguments: Any, **options: Any) -> None:
        waiting.set()
        locks.acquire(*arguments, **options)

    reader = threading.Thread(target=lambda: found.append(log.read()))
    with log.locked():
        monkeypatch.setattr("rblstore.storage.refs_log.acquire", acquire)
        path.write_bytes(b"0" + whole[1:])
        reader.start()
        assert waiting.wait(10)
        path.write_bytes(whole)
    reader.join()
    assert found[0].operations == tuple(operations)
