"""Laws of refs.log: the beginning of a log is a log, and nothing in it raises anything of another family."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from hypothesis_tiers import law

from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import OperationId
from rblstore.storage.pack_format import checksum
from rblstore.storage.refs_log import CorruptLogError, RefsLog, encode_line, parse_log

LAW = law(150, suppress_health_check=[HealthCheck.function_scoped_fixture])

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    made: list[Operation] = []
    for sequence in range(1, draw(st.integers(1, 6)) + 1):
        previous = OperationId(Operation.id_of(made[-1].encode())) if made else None
        change = RefChange("refs/heads/main", None, draw(st.sampled_from(["0" * 64, "ref: refs/heads/x"])))
        made.append(
            Operation(sequence, previous, draw(words), (change,), previous, draw(words), "2026-01-02T03:04:05Z")
        )
    return made


def lines_of(operations: list[Operation]) -> list[bytes]:
    lines: list[bytes] = []
    for operation in operations:
        lines.append(encode_line(operation, lines[-1] if lines else None))
    return lines


@LAW
@given(histories(), st.data())
def test_any_beginning_of_a_log_is_a_log_and_can_be_continued(
    tmp_path: Path, operations: list[Operation], draw: st.DataObject
) -> None:
    lines = lines_of(operations)
    data = b"".join(lines)
    size = draw.draw(st.integers(0, len(data)))
    whole = data[:size].count(b"\n")
    valid = sum(map(len, lines[:whole]))
    parsed = parse_log(data[:size])
    assert parsed.operations == tuple(operations[:whole])
    assert (parsed.valid_bytes, parsed.torn) == (valid, size > valid)
    path = tmp_path / "refs.log"
    path.write_bytes(data[:size])
    log = RefsLog(path)
    assert log.last() == ((whole, lines[whole - 1][:-1]) if whole else None)
    with log.locked() as writer:
        writer.append(operations)
    assert path.read_bytes() == data


@LAW
@given(histories(), st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_flipped_byte_is_corruption_or_a_torn_last_line(operations: list[Operation], place: int, value: int) -> None:
    data = bytearray(b"".join(lines_of(operations)))
    data[place % len(data)] ^= value
    try:
        parsed = parse_log(bytes(data))
    except CorruptLogError:
        return
    assert parsed.operations == tuple(operations[: len(parsed.operations)])
    assert parsed.torn
    assert len(parsed.operations) >= len(operations) - 2


@LAW
@given(st.lists(st.one_of(st.binary(max_size=60), st.just(b"0" * 64 + b" 1 {}"), words.map(str.encode)), max_size=5))
def test_hostile_logs_are_corrupt_or_torn(tmp_path: Path, rests: list[bytes]) -> None:
    data = b"".join(f"{checksum(rest):016x} ".encode() + rest + b"\n" for rest in rests)
    path = tmp_path / "refs.log"
    for candidate in (data, data[:-1], b"\n".join(rests)):
        path.write_bytes(candidate)
        for read in (lambda data: parse_log(data), lambda _: RefsLog(path).last()):
            try:
                read(candidate)
            except CorruptLogError:
                pass


def test_a_second_operation_needs_the_first() -> None:
    operation = Operation(1, None, "x", (), None, "A", "2026-01-02T03:04:05Z")
    with pytest.raises(CorruptLogError):
        parse_log(encode_line(operation, b"another line"))
