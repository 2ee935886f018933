"""The contract of whatever keeps the packs: put-if-absent, ranged get, list, move and delete, and nothing else.

It is small on purpose, so that an object store can serve it. Every implementation passes tests/conformance. What all of
them promise:

* A key names the same bytes for ever. An object appears whole, under its key, or not at all.
* Once :meth:`Stage.publish` returns, the object outlives a power cut.
* Methods may be called from several threads at once, but one :class:`Stage` is used by one thread at a time.
* Errors are those named here, all of them of the :class:`~rblstore.errors.RblError` family. Only the two
  :class:`~rblstore.errors.CorruptError` mean that stored bytes are lost; the others say nothing about what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, Protocol, get_args

from rblstore.errors import CorruptError, InputError, RblError

Room = Literal["packs", "trash", "quarantine"]

ROOMS: Final = get_args(Room)

MEND: Final = (
    "To see what needs it: rbl fsck. To mend it from another copy, or from the directory that it came from: "
    "rbl repair --from PATH"
)
"""What to do about stored bytes that are damaged or gone."""

_ROOM = f"(?:{'|'.join(ROOMS)})"
_KEY = re.compile(_ROOM + r"/([0-9a-f]{2})/\1[0-9a-f]{62}\.pack")
_PREFIX = re.compile(rf"({_ROOM}/([0-9a-f]{{2}}/[0-9a-f]{{0,64}})?)?")


class MissingObjectError(CorruptError):
    """Nothing is stored under the key (or something is that is no object: a folder, a symbolic link)."""

    code = "missing_object"


class TruncatedObjectError(CorruptError):
    """The object ends before the bytes that were asked for."""

    code = "truncated_object"


class ReadError(RblError):
    """The system could not read (an I/O error, no permission); whether the bytes are whole is not known."""

    code = "read_failed"


class BadKeyError(InputError):
    """The key is not ``packs/<2 digits>/<64 digits>.pack``, or the same in another room; nothing was looked up."""

    code = "bad_key"


def is_key(text: str) -> bool:
    """Whether the text has the one form that keys have."""
    return _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """A key, returned as it is.

    Raises:
        BadKeyError: It is not of the one form that keys have.
    """
    if not is_key(key):
        raise BadKeyError(f"{key[:120]!r} is not the key of a stored object", object=key[:120])
    return key


def check_prefix(prefix: str) -> str:
    """The beginning of a key, cut anywhere after a slash, returned as it is.

    Raises:
        BadKeyError: No key begins so.
    """
    if not _PREFIX.fullmatch(prefix):
        raise BadKeyError(f"{prefix[:120]!r} is not the beginning of a key", object=prefix[:120])
    return prefix


def missing(key: str) -> MissingObjectError:
    """The error for a key under which nothing is stored."""
    return MissingObjectError(f"the stored object {key} is missing", object=key, hint=MEND)


def check_span(key: str, offset: int, length: int, size: int) -> None:
    """Refuses a range that an object does not have.

    Raises:
        TruncatedObjectError: It reaches beyond the end.
    """
    if offset < 0 or length < 0:
        raise ValueError(f"the range {offset}+{length} is negative")
    if offset + length > size:
        raise TruncatedObjectError(
            f"the stored object {key} has {size} bytes where {offset + length} were expected",
            object=key,
            hint=MEND,
        )


class Stage(Protocol):
    """An object being written, invisible until it is published.

    After :meth:`publish` or :meth:`discard`, and after any error, every method but :meth:`discard` raises
    :class:`~rblstore.storage.durable.WriteError`.
    """

    @property
    def size(self) -> int:
        """Bytes written and not truncated away."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes; they are taken before the call returns, so the buffer may be used again.

        Raises:
            WriteError: The system refused (a full disk, an I/O error); the stage is discarded.
        """

    def truncate(self, size: int) -> None:
        """Drops everything from an offset on, which is at most :attr:`size`.

        Raises:
            WriteError: The system refused; the stage is discarded.
        """

    def publish(self, key: str) -> bool:
        """Makes the object durable and visible under its key, unless one is there already.

        Returns:
            True where this object is there now; False where there was one, which stays and is durable too.

        Raises:
            BadKeyError: Not a key; the stage is discarded.
            WriteError: The system refused; the stage is discarded. If the object is there afterwards, it is whole.
        """

    def discard(self) -> None:
        """Forgets what was written. Never raises; does nothing once published or discarded."""


class Backend(Protocol):
    """Where the packs are."""

    def stage(self) -> Stage:
        """Begins a new object, of no bytes yet.

        Raises:
            WriteError: The system refused.
        """

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on, in bytes that nothing else refers to.

        Raises:
            BadKeyError: Not a key.
            MissingObjectError: Nothing is stored under it.
            TruncatedObjectError: The object is shorter than ``offset + length``; nothing was allocated for it.
            ReadError: The system refused.
        """

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        """Fills ``out`` with the bytes from ``offset`` on; raises as :meth:`read` does.

        Args:
            key: Which object.
            offset: First byte wanted.
            out: Writable bytes, as many as are wanted. After an error they hold anything.
        """

    def size(self, key: str) -> int:
        """The object's bytes.

        Raises:
            BadKeyError, MissingObjectError, ReadError: As for :meth:`read`.
        """

    def exists(self, key: str) -> bool:
        """Whether an object is stored under the key.

        Raises:
            BadKeyError, ReadError: As for :meth:`read`.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that begins so, in no particular order; what comes or goes meanwhile may or may not be among them.

        Args:
            prefix: ``""``, or the beginning of a key cut after a slash or after any digit of the last part.

        Raises:
            BadKeyError: No key begins so.
            ReadError: The system refused.
        """

    def move(self, key: str, to: str) -> bool:
        """Gives an object another key, durably; from then on its :meth:`modified` is the time of the move.

        An object store without a rename copies and then deletes: a crash between the two leaves the object under both.
        Whoever moves holds the repository's lock alone.

        Returns:
            False where there was an object under the new key, or nothing under the old one; nothing was changed.

        Raises:
            BadKeyError: One of them is not a key.
            WriteError: The system refused; the object is under one of the keys, or under both.
        """

    def modified(self, key: str) -> float:
        """When an object was published or moved, in seconds, by the clock of :meth:`now`.

        Raises:
            BadKeyError, MissingObjectError, ReadError: As for :meth:`read`.
        """

    def now(self) -> float:
        """The time by the clock that stamps objects, which may be another machine's, in seconds.

        Raises:
            WriteError: The system refused.
        """

    def delete(self, key: str) -> None:
        """Removes an object; does nothing where there is none. Only maintenance calls this.

        Raises:
            BadKeyError: Not a key.
            WriteError: The system refused; the object is still there.
        """
