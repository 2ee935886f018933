"""Checking whole packs: what ``rbl fsck`` asks storage.

Frames stand back to back, so a pack is read in large pieces, several at once, whatever the size of its frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackSummary
from rblstore.storage.backend import Backend, ReadError, check_span
from rblstore.storage.codecs import UnknownCodecError
from rblstore.storage.decoding import DEFAULT_WORKERS
from rblstore.storage.pack_format import FrameEntry, checksum, pack_key
from rblstore.storage.pack_reader import CorruptContentError, PackReader, Readable
from rblstore.storage.rooms import scratch
from rblstore.storage.stored_content import Find

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# Neighbouring frames are read together up to so many bytes; a larger frame by itself. Small enough for a processor's
# cache to still have the bytes when their checksums are taken.
_SPAN_BYTES: Final = 1 << 20
# A smaller pack is read whole, by one thread while others read others.
_SMALL_PACK: Final = 4 << 20


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a pack.

    Attributes:
        pack: Which pack.
        content: The content whose bytes are damaged; None where the pack itself is (then everything in it is in doubt).
        problem: What is wrong, for people.
    """

    pack: PackId
    content: ContentId | None
    problem: str


@dataclass(frozen=True)
class CheckedPack:
    """What a pack holds, and what is wrong with it.

    Attributes:
        pack: Which pack.
        summary: What it holds; None where the pack itself is damaged.
        bases: What those of its contents that are stored as differences are differences from.
        damages: At most one for each content, or one for the pack.
    """

    pack: PackId
    summary: PackSummary | None
    bases: Mapping[ContentId, tuple[ContentId, ...]]
    damages: tuple[Damage, ...]


class _Whole:
    """A small pack in memory: what a pack's reader asks of a backend."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self, key: str) -> int:
        return len(self._data)

    def read(self, key: str, offset: int, length: int) -> bytes:
        check_span(key, offset, length, len(self._data))
        return self._data[offset : offset + length]

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        out[:] = self.read(key, offset, len(out))


def check_packs(
    backend: Readable, packs: Iterable[PackId], *, workers: int = DEFAULT_WORKERS, frames: bool = True
) -> Iterator[CheckedPack]:
    """Checks packs without decoding: header, footer, index against the pack's id, and every frame's XXH3.

    Between them they cover every byte. Nothing is changed, and damage raises nothing.

    Args:
        backend: Where the packs are.
        packs: Which ones; asked for a little ahead.
        workers: Threads that read; at least one.
        frames: Whether to read the frames. Without them, what somebody decodes anyway is not read twice.

    Yields:
        Each pack, in order.
    """
    from concurrent.futures import ThreadPoolExecutor  # not for whoever only writes packs

    pool = ThreadPoolExecutor(workers, thread_name_prefix="rbl-check")
    ahead: deque[Future[CheckedPack]] = deque()
    try:
        for pack in packs:
            if _is_small(backend, pack):
                ahead.append(pool.submit(_check_small, backend, pack, frames=frames))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
                continue
            while ahead:
                yield ahead.popleft().result()
            yield _check(PackReader(backend, pack), pack, _Frames(backend, pack, pool, 2 * workers) if frames else None)
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _is_small(backend: Readable, pack: PackId) -> bool:
    try:
        return backend.size(pack_key(pack)) <= _SMALL_PACK
    except (CorruptError, ReadError):
        return True  # which reading it says again


def _check_small(backend: Readable, pack: PackId, *, frames: bool) -> CheckedPack:
    key = pack_key(pack)
    try:
        whole = _Whole(backend.read(key, 0, backend.size(key)))
    except (CorruptError, ReadError) as error:
        return CheckedPack(pack, None, {}, (Damage(pack, None, error.message),))
    return _check(PackReader(whole, pack), pack, _Frames(whole, pack, None, 0) if frames else None)


def _check(reader: PackReader, pack: PackId, frames: _Frames | None) -> CheckedPack:
    locations: list[ContentLocation] = []
    bases: dict[ContentId, tuple[ContentId, ...]] = {}
    try:
        for entry, location in reader.walk():
            if location is not None:
                locations.append(location)
            if entry.base is not None and entry.base not in bases.get(entry.content, ()):
                bases[entry.content] = (*bases.get(entry.content, ()), entry.base)
            if frames is not None:
                frames.add(entry)
        summary = PackSummary(pack, reader.kind(), reader.footer().file_size, tuple(locations))
    except (CorruptError, ReadError) as error:
        # What its entries say of frames is not to be believed either.
        return CheckedPack(pack, None, {}, (Damage(pack, None, error.message),))
    found = {} if frames is None else frames.finish()
    return CheckedPack(pack, summary, bases, tuple(Damage(pack, *one) for one in found.items()))


class _Frames:
    """The checksums of a pack's frames, compared in threads.

    Args:
        backend: Where the pack is, or the pack itself.
        pack: Which one.
        pool: The threads; None to do it at once.
        most: How many reads may be under way, or done and not looked at.
    """

    def __init__(self, backend: Readable, pack: PackId, pool: ThreadPoolExecutor | None, most: int) -> None:
        self._backend = backend
        self._key = pack_key(pack)
        self._pool = pool
        self._most = most
        self._span: list[FrameEntry] = []
        self._bytes = 0
        self._reading: deque[Future[dict[ContentId, str]]] = deque()
        self._found: dict[ContentId, str] = {}

    def add(self, entry: FrameEntry) -> None:
        if self._span and self._bytes + entry.stored_length > _SPAN_BYTES:
            self._read_span()
        self._span.append(entry)
        self._bytes += entry.stored_length

    def finish(self) -> dict[ContentId, str]:
        """What is wrong with which content."""
        self._read_span()
        while self._reading:
            self._take(self._reading.popleft().result())
        return self._found

    def _read_span(self) -> None:
        span, self._span, self._bytes = self._span, [], 0
        if self._pool is None:
            self._take(self._check(span))
            return
        self._reading.append(self._pool.submit(self._check, span))
        if len(self._reading) > self._most:
            self._take(self._reading.popleft().result())

    def _take(self, found: dict[ContentId, str]) -> None:
        for content, problem in found.items():
            self._found.setdefault(content, problem)

    def _check(self, span: list[FrameEntry]) -> dict[ContentId, str]:
        if not span:
            return {}
        first = span[0].offset
        room = scratch(span[-1].offset + span[-1].stored_length - first, "check")
        try:
            self._backend.read_into(self._key, first, room)
        except (CorruptError, ReadError) as error:
            # One bad sector is not to be blamed on its neighbours: each frame by itself.
            if len(span) == 1:
                return {span[0].content: error.message}
            return {content: why for one in reversed(span) for content, why in self._check([one]).items()}
        found: dict[ContentId, str] = {}
        for entry in span:
            if checksum(room[entry.offset - first : entry.offset - first + entry.stored_length]) != entry.checksum:
                found.setdefault(entry.content, f"the checksum of its frame at {entry.start} differs")
        return found


def check_pack(backend: Backend, pack: PackId, *, full: bool, find: Find | None = None) -> Iterator[Damage]:
    """Everything that is wrong with a pack; nothing is changed, and damage raises nothing.

    Args:
        backend: Where the pack is.
        pack: Which one.
        full: Whether to decode every frame and compare the SHA-256 of every content, too.
        find: Finds what frames are differences from; a full check needs it.

    Yields:
        At most one damage for each content, or one for the pack.
    """
    for checked in check_packs(backend, [pack], workers=1, frames=not full):
        yield from checked.damages
        if full and checked.summary is not None:
            reader = PackReader(backend, pack, find)
            for location in checked.summary.locations:
                try:
                    for _ in reader.read(location):
                        pass
                except (CorruptError, ReadError, UnknownCodecError) as error:
                    yield Damage(pack, location.content, problem_of(error, location.content))


def problem_of(error: CorruptError | ReadError | UnknownCodecError, content: ContentId) -> str:
    """What an error says of a content, for people who see its id beside it."""
    # What is damaged may be its base, which the message names.
    return error.why if isinstance(error, CorruptContentError) and error.content == content else error.message
