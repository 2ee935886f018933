"""What every backend must do, whatever it is made of: the contract of rblstore/storage/backend.py, line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rblstore.storage.backend import Backend, BadKeyError, MissingObjectError, TruncatedObjectError
from rblstore.storage.disk import DiskBackend
from rblstore.storage.durable import WriteError
from rblstore.storage.memory import MemoryBackend

A = "packs/ab/ab" + "0" * 62 + ".pack"
B = "packs/ab/ab" + "1" * 62 + ".pack"
C = "packs/cd/cd" + "2" * 62 + ".pack"


@pytest.fixture(params=["disk", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "memory":
        memory = MemoryBackend()
        yield memory
        assert memory.open_stages == 0
        return
    (tmp_path / "tmp").mkdir()
    yield DiskBackend(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == [], "a stage was left behind"


def put(backend: Backend, key: str, data: bytes) -> bool:
    stage = backend.stage()
    stage.write(data)
    return stage.publish(key)


def test_an_object_reads_as_it_was_written_in_pieces_of_any_kind(backend: Backend) -> None:
    stage = backend.stage()
    reused = bytearray(b"ab")
    stage.write(reused)
    reused[:] = b"XX"
    stage.write(memoryview(b"_cd_")[1:3])
    stage.write(b"")
    stage.write(memoryview(b"efgh").cast("I"))
    assert stage.size == 8
    assert stage.publish(A)
    assert backend.read(A, 0, 8) == b"abcdefgh"
    assert backend.read(A, 3, 2) == b"de"
    assert backend.read(A, 8, 0) == b""
    assert type(backend.read(A, 0, 8)) is bytes
    room = bytearray(b"12345678")
    backend.read_into(A, 2, memoryview(room)[1:6])
    assert room == b"1cdefg78"
    backend.read_into(A, 0, memoryview(room))
    assert room == b"abcdefgh"
    backend.read_into(A, 8, memoryview(bytearray()))
    assert backend.size(A) == 8
    assert backend.exists(A)


def test_an_empty_object_is_an_object(backend: Backend) -> None:
    assert backend.stage().publish(A)
    assert backend.exists(A)
    assert backend.size(A) == 0
    assert backend.read(A, 0, 0) == b""


def test_nothing_is_visible_before_it_is_published(backend: Backend) -> None:
    stage = backend.stage()
    stage.write(b"x" * 100)
    assert not backend.exists(A)
    assert list(backend.list("")) == []
    stage.discard()
    stage.discard()
    assert list(backend.list("")) == []


def test_what_is_truncated_away_is_written_over(backend: Backend) -> None:
    stage = backend.stage()
    stage.write(b"keep, drop")
    stage.truncate(4)
    assert stage.size == 4
    stage.write(b"!")
    stage.publish(A)
    assert backend.read(A, 0, backend.size(A)) == b"keep!"


@pytest.mark.parametrize("size", [-1, 5])
def test_truncating_never_lengthens(backend: Backend, size: int) -> None:
    stage = backend.stage()
    stage.write(b"four")
    with pytest.raises(WriteError):
        stage.truncate(size)
    with pytest.raises(WriteError):
        stage.publish(A)
    assert not backend.exists(A)


def test_the_first_object_under_a_key_stays(backend: Backend) -> None:
    assert put(backend, A, b"first")
    assert not put(backend, A, b"second, longer")
    assert backend.read(A, 0, 5) == b"first"
    assert backend.size(A) == 5


@pytest.mark.parametrize("end", ["publish", "discard"])
def test_a_stage_that_has_ended_refuses(backend: Backend, end: str) -> None:
    stage = backend.stage()
    stage.write(b"x")
    if end == "publish":
        stage.publish(A)
    else:
        stage.discard()
    with pytest.raises(WriteError):
        stage.write(b"more")
    with pytest.raises(WriteError):
        stage.truncate(0)
    with pytest.raises(WriteError):
        stage.publish(B)
    stage.discard()
    assert backend.exists(A) == (end == "publish")
    assert not backend.exists(B)


def test_what_is_missing_is_corruption_that_names_the_key(backend: Backend) -> None:
    put(backend, B, b"neighbour")
    for ask in (
        lambda: backend.read(A, 0, 0),
        lambda: backend.size(A),
        lambda: backend.read_into(A, 0, memoryview(bytearray(1))),
        lambda: backend.read_into(A, 0, memoryview(bytearray())),
    ):
        with pytest.raises(MissingObjectError, match=A):
            ask()
    assert not backend.exists(A)


@pytest.mark.parametrize(("offset", "length"), [(0, 6), (5, 1), (6, 0), (2, 4), (0, 1 << 62), (1 << 62, 1)])
def test_a_range_that_is_not_there_is_truncation_and_never_a_short_read(
    backend: Backend, offset: int, length: int
) -> None:
    put(backend, A, b"12345")
    with pytest.raises(TruncatedObjectError, match=A):
        backend.read(A, offset, length)


@pytest.mark.parametrize(("offset", "length"), [(0, 6), (5, 1), (6, 0), (2, 4), (1 << 62, 1), ((1 << 63) - 1, 1)])
def test_filling_from_an_object_that_ends_before_is_truncation(backend: Backend, offset: int, length: int) -> None:
    put(backend, A, b"12345")
    with pytest.raises(TruncatedObjectError, match=A):
        backend.read_into(A, offset, memoryview(bytearray(length)))


def test_a_negative_range_is_refused(backend: Backend) -> None:
    put(backend, A, b"12345")
    for offset, length in ((-1, 2), (3, -1)):
        with pytest.raises(ValueError, match="negative"):
            backend.read(A, offset, length)
    with pytest.raises(ValueError, match="negative"):
        backend.read_into(A, -1, memoryview(bytearray(2)))


def test_listing_gives_what_begins_so(backend: Backend) -> None:
    assert list(backend.list("")) == []
    for key in (A, B, C):
        put(backend, key, b"x")
    assert sorted(backend.list("")) == [A, B, C]
    assert sorted(backend.list("packs/")) == [A, B, C]
    assert sorted(backend.list("packs/ab/")) == [A, B]
    assert sorted(backend.list("packs/ab/ab1")) == [B]
    assert list(backend.list("packs/ef/")) == []


def test_deleting_removes_and_a_second_time_does_nothing(backend: Backend) -> None:
    put(backend, A, b"x")
    put(backend, B, b"y")
    backend.delete(A)
    backend.delete(A)
    backend.delete(C)
    assert not backend.exists(A)
    assert list(backend.list("")) == [B]
    assert put(backend, A, b"again")
    assert backend.read(A, 0, 5) == b"again"


BAD_KEYS = [
    "",
    "packs",
    "packs/ab/" + "0" * 64 + ".pack",  # in the wrong folder
    "packs/ab/ab" + "0" * 61 + ".pack",
    "packs/ab/ab" + "0" * 63 + ".pack",
    "packs/AB/AB" + "0" * 62 + ".pack",
    A + "\n",
    A + "/",
    "/" + A,
    "../" + A,
    "packs/../" + A,
    A.replace("packs", "tmp"),
    A.replace("/", "\\"),
    A.removesuffix(".pack"),
    A + "\0",
    "packs/ab/ab" + "٠" * 62 + ".pack",
]


def test_a_moved_object_has_its_new_key_alone(backend: Backend) -> None:
    put(backend, A, b"one")
    put(backend, B, b"two")
    trash = A.replace("packs", "trash")
    assert backend.move(A, trash)
    assert not backend.exists(A)
    assert backend.read(trash, 0, 3) == b"one"
    assert sorted(backend.list("")) == [B, trash]
    assert list(backend.list("trash/")) == [trash]
    assert list(backend.list("packs/")) == [B]
    assert list(backend.list("quarantine/")) == []
    assert backend.move(trash, A)
    assert backend.read(A, 0, 3) == b"one"


def test_moving_replaces_nothing_and_nothing_is_moved_twice(backend: Backend) -> None:
    put(backend, A, b"one")
    put(backend, B, b"two")
    assert not backend.move(A, B)
    assert (backend.read(A, 0, 3), backend.read(B, 0, 3)) == (b"one", b"two")
    assert not backend.move(C, C.replace("packs", "quarantine"))
    assert sorted(backend.list("")) == [A, B]


def test_an_object_is_as_old_as_its_publication_or_its_move(backend: Backend, tmp_path: Path) -> None:
    before = backend.now()
    put(backend, A, b"one")
    published = backend.modified(A)
    assert before <= published <= backend.now()
    if isinstance(backend, DiskBackend):
        os.utime(tmp_path / A, (0, 0))
        published = backend.modified(A)
        assert published == 0
        before = backend.now()
    trash = A.replace("packs", "trash")
    backend.move(A, trash)
    assert max(published, before) <= backend.modified(trash) <= backend.now()
    with pytest.raises(MissingObjectError):
        backend.modified(A)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_what_is_no_key_is_refused_everywhere(backend: Backend, key: str) -> None:
    for ask in (
        backend.size,
        backend.exists,
        backend.delete,
        backend.modified,
        lambda key: backend.move(key, A),
        lambda key: backend.move(A, key),
        lambda key: backend.read(key, 0, 0),
        lambda key: backend.read_into(key, 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(BadKeyError):
            ask(key)
    stage = backend.stage()
    stage.write(b"x")
    with pytest.raises(BadKeyError):
        stage.publish(key)
    assert list(backend.list("")) == []


@pytest.mark.parametrize(
    "prefix", ["pack", "packs/a", "packs/ab/../", "/", "tmp/", "packs/ab/" + "0" * 65, "packs/ab/\n"]
)
def test_what_begins_no_key_is_refused_at_once(backend: Backend, prefix: str) -> None:
    with pytest.raises(BadKeyError):
        backend.list(prefix)
