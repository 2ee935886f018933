"""The small parts that every rendering uses: safe text, short ids, sizes, columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# C0 and C1 controls and the marks that reorder or hide text: what was written elsewhere must not drive a terminal.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_DIGEST = re.compile("[0-9a-f]{64}")
WIDTH = 80
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def _escape(match: re.Match[str]) -> str:
    return match.group(0).encode("unicode_escape", "surrogatepass").decode("ascii")


def printable(value: Any) -> Any:
    """The same JSON value with every character that could drive a terminal escaped, in keys too."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub(_escape, value)
    if isinstance(value, dict):
        return {printable(key): printable(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(element) for element in value]
    return value


def short(object_id: str | None) -> str:
    """The first twelve digits of an id; a dash for none."""
    return "-" if object_id is None else object_id[:12]


def size(count: int) -> str:
    """Bytes for people: 0 B, 999 B, 1.5 KiB, 536.2 MiB."""
    amount, power = float(count), 0
    while amount >= 1024 and power + 1 < len(_UNITS):
        amount, power = amount / 1024, power + 1
    return f"{amount:.1f} {_UNITS[power]}" if power else f"{count} B"


def number(value: float | None) -> str:
    """A divergence or a fraction: 0 and 1 as they are, the rest in four significant digits; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if value != int(value) or abs(value) >= 10_000 else str(int(value))


def times(ratio: float | None) -> str:
    """A ratio of sizes: ``1.49x``; a dash for none."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count and its noun: ``1 file``, ``2 files``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def first_line(text: str) -> str:
    """The subject of a message."""
    return text.split("\n", 1)[0]


def indent(text: str, width: int = 4) -> Iterator[str]:
    """The lines of a text, moved right; empty ones stay empty."""
    for line in text.rstrip("\n").split("\n"):
        yield (" " * width + line).rstrip()


def wrapped(text: str, indent: str, first: str = "") -> list[str]:
    """Words in lines of at most 80 columns.

    Args:
        text: Any white space in it counts as one space.
        indent: What every line but the first begins with.
        first: What the first begins with.
    """
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )


def columns(rows: Iterable[Sequence[str]], *, header: Sequence[str] | None = None, gap: int = 2) -> list[str]:
    """Rows as aligned text; every cell but those of the last column is padded."""
    table = [*([list(header)] if header is not None else []), *(list(row) for row in rows)]
    if not table:
        return []
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    space = " " * gap
    return [space.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def environment_lines(label: str, environment: dict[str, str], width: int = 80) -> list[str]:
    """An environment as ``key value`` pairs, wrapped behind a label; digests cut short."""
    pairs = [
        f"{key} {short(value) if _DIGEST.fullmatch(value) else value}" for key, value in sorted(environment.items())
    ]
    lines = [label]
    for number_of_pair, pair in enumerate(pairs):
        text = pair if number_of_pair + 1 == len(pairs) else f"{pair}, "
        if len(lines[-1]) + len(text) > width and len(lines[-1]) > len(label):
            lines.append(" " * len(label))
        lines[-1] += text
    return [line.rstrip() for line in lines]


def slot_text(slot: Any) -> str:
    """A composition's slot: its name, and its weight where that is not 1."""
    return slot["name"] if slot["weight"] == 1 else f"{slot['name']} (weight {number(slot['weight'])})"


def slots_text(slots: Sequence[Any]) -> str:
    """The slots of a composition in order; ``none`` where it has none."""
    return ", ".join(slot_text(slot) for slot in slots) or "none"
