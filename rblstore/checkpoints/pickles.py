"""Telling pickles from data, by content whatever the name. Nothing here unpickles anything."""

from __future__ import annotations

import re
import zlib
from typing import Final

HEAD_BYTES: Final = 4096

_CERTAIN_NAMES: Final = re.compile(r".*\.(pkl|pickle|joblib)(\.(gz|bz2|xz|z|lzma|zst))?", re.IGNORECASE | re.DOTALL)
_WEIGHT_NAMES: Final = re.compile(r".*\.(bin|pt|pth|ckpt)", re.IGNORECASE | re.DOTALL)
# Raw weights that other runtimes keep under names of that kind.
_OTHER_RUNTIMES: Final = re.compile(r"(openvino|ggml|gguf).*\.bin", re.IGNORECASE | re.DOTALL)
_OTHER_MAGICS: Final = (b"GGUF", b"ggml", b"lmgg", b"tjgg", b"\x89HDF", b"PAR1", b"ARROW1")

_OBJECT_ARRAY: Final = re.compile(rb"\x93NUMPY.{2,6}\{[^\x00]{0,2000}?(?:'descr': |, )'[|<>=]?O[0-9]*'", re.DOTALL)
_ZIP_PICKLE: Final = re.compile(rb"PK(?:\x03\x04.{26}|\x01\x02.{42})[^\x00]{0,200}?\.(?:pkl|pickle)", re.DOTALL)
_TAR_MEMBERS: Final = frozenset({b"sys_info", b"pickle", b"tensors", b"storages"})
_GLOBAL_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]*")

# Opcodes of protocols 0 and 1, which have no magic number: bytes of argument that each takes (or one of the words), how
# many values it needs on the stack, and how many more there are after it.
_LINE, _TWO_LINES, _COUNT1, _COUNT4 = -1, -2, -3, -4
_OPCODES: Final[dict[int, tuple[int, int, int]]] = {
    **dict.fromkeys(b"N])}", (0, 0, 1)),
    **dict.fromkeys(b"FILPSVg", (_LINE, 0, 1)),
    **dict.fromkeys(b"Kh", (1, 0, 1)),
    ord("M"): (2, 0, 1),
    ord("J"): (4, 0, 1),
    ord("j"): (4, 0, 1),
    ord("G"): (8, 0, 1),
    **dict.fromkeys(b"UC", (_COUNT1, 0, 1)),
    **dict.fromkeys(b"BTX", (_COUNT4, 0, 1)),
    ord("c"): (_TWO_LINES, 0, 1),
    ord("2"): (0, 1, 1),
    ord("0"): (0, 1, -1),
    ord("Q"): (0, 1, 0),
    ord("p"): (_LINE, 1, 0),
    ord("q"): (1, 1, 0),
    ord("r"): (4, 1, 0),
    **dict.fromkeys(b"Rab", (0, 2, -1)),
    ord("s"): (0, 3, -2),
}
_TO_MARK: Final = {ord(code): argument for code, argument in {"d": 0, "l": 0, "t": 0, "o": 0, "i": _TWO_LINES}.items()}
_INTO_BELOW: Final = frozenset(b"eu")
_MARK, _POP_MARK, _STOP = ord("("), ord("1"), ord(".")
_MANY: Final = 48

# What may follow the protocol number in protocols 2 to 5.
_AFTER_PROTOCOL: Final = frozenset(b"()]}cNIJKLMFGSTUVXBC.") | frozenset(
    b"\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96"
)


def _argument_end(head: bytes, start: int, kind: int) -> int | None:
    """Where an opcode's argument ends; beyond the head where it is cut off; None where it cannot be one."""
    if kind >= 0:
        return start + kind
    if kind in (_LINE, _TWO_LINES):
        for _ in range(-kind):
            end = head.find(b"\n", start)
            if end < 0:
                return len(head) + 1
            if kind == _TWO_LINES and not _GLOBAL_NAME.fullmatch(head[start:end]):
                return None
            start = end + 1
        return start
    width = {_COUNT1: 1, _COUNT4: 4}[kind]
    return start + width + int.from_bytes(head[start : start + width], "little")


def _step(opcode: int, levels: list[int]) -> int | None:
    """Applies an opcode to the number of values above each mark.

    Returns:
        The kind of its argument, or None where no pickle would have it here.
    """
    if opcode == _MARK:
        levels.append(0)
        return 0
    if opcode in _TO_MARK or opcode in _INTO_BELOW or opcode == _POP_MARK:
        if len(levels) < 2:
            return None
        levels.pop()
        if opcode in _TO_MARK:
            levels[-1] += 1
        elif opcode in _INTO_BELOW and levels[-1] == 0:
            return None
        return _TO_MARK.get(opcode, 0)
    if opcode not in _OPCODES:
        return None
    kind, needs, change = _OPCODES[opcode]
    if levels[-1] < needs:
        return None
    levels[-1] += change
    return kind


def _runs_as_pickle(head: bytes) -> bool:
    """Whether the bytes are a program of protocol 0 or 1, as far as they go, that builds an object or a container."""
    if head[:1] not in (b"(", b"c", b"]", b"}"):
        return False
    levels = [0]
    seen: set[int] = set()
    position = steps = 0
    while position < len(head) and steps < _MANY:
        opcode = head[position]
        if opcode == _STOP:
            return steps > 1 and levels == [1]
        kind = _step(opcode, levels)
        end = None if kind is None else _argument_end(head, position + 1, kind)
        if end is None:
            return False
        seen.add(opcode)
        steps += 1
        position = end
    # Cut off at the end of the head: a few opcodes prove little, many of several kinds do.
    return steps >= _MANY and len(seen) > 2


def _begins_with_protocol(head: bytes) -> bool:
    if len(head) < 3 or head[0] != 0x80 or not 2 <= head[1] <= 5 or head[2] not in _AFTER_PROTOCOL:
        return False
    if head[2] == 0x95:
        return len(head) < 11 or int.from_bytes(head[3:11], "little") < 1 << 48
    return True


def _holds_pickled_tar_member(head: bytes) -> bool:
    if head[257:262] != b"ustar" and head[:100].rstrip(b"\0") not in _TAR_MEMBERS:
        return False
    for block in range(0, len(head) - 99, 512):
        name = head[block : block + 100].split(b"\0", 1)[0]
        if name in _TAR_MEMBERS or re.search(rb"\.(pkl|pickle|pt|pth|ckpt)$", name):
            return True
    return False


def _decompressed(head: bytes) -> bytes:
    """The first bytes of a gzip or zlib stream, or nothing."""
    is_gzip = head[:2] == b"\x1f\x8b"
    is_zlib = head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0
    if not (is_gzip or is_zlib):
        return b""
    try:
        return zlib.decompressobj(47).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _is_pickle_content(head: bytes) -> bool:
    if _begins_with_protocol(head):
        return True
    if head[:4] == b"PK\x03\x04":
        return _ZIP_PICKLE.search(head) is not None or _OBJECT_ARRAY.search(head) is not None
    if head[:6] == b"\x93NUMPY":
        return _OBJECT_ARRAY.match(head) is not None
    return _holds_pickled_tar_member(head) or _runs_as_pickle(head)


def _is_text(head: bytes) -> bool:
    # The head may end inside a character, so up to three bytes at its end prove nothing.
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return bool(text) and not any(ord(character) < 32 and character not in "\t\n\r\f\x1b" for character in text)
    return False


def zip_names_pickle(directory: bytes) -> bool:
    """Whether the end of a zip archive, where its table of contents is, names a pickle.

    Args:
        directory: The archive's last bytes, as many as the caller cares to read.
    """
    return _ZIP_PICKLE.search(directory) is not None


def looks_like_pickle(head: bytes, name: str) -> bool:
    """Whether loading the file would unpickle something.

    Content decides: pickles of any protocol, archives of torch.save (zip, the older stream, the tar before it), numpy
    arrays of objects, joblib dumps, compressed or not. A name that promises pickled weights (``pytorch_model.bin``,
    ``optimizer.pt``) is taken at its word unless the content is text or another runtime's.

    Args:
        head: The file's first bytes, :data:`HEAD_BYTES` or fewer if it is shorter.
        name: Its path or name.
    """
    if _is_pickle_content(head) or _is_pickle_content(_decompressed(head)):
        return True
    base = name.rsplit("/", 1)[-1]
    if _CERTAIN_NAMES.fullmatch(base):
        return True
    return (
        _WEIGHT_NAMES.fullmatch(base) is not None
        and _OTHER_RUNTIMES.fullmatch(base) is None
        and not head.startswith(_OTHER_MAGICS)
        and not _is_text(head)
    )
