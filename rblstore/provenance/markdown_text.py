"""Text that others wrote, put into Markdown so that it stays text: no markup, no links, no lines of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

NOT_STATED: Final = "not stated"
LONGEST: Final = 400

# Controls, and the marks that reorder or hide text.
_HIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_MARKUP: Final = re.compile(r"([\\`*_\[\]|~$])")
# What makes a heading, a list or a line only at the beginning.
_FIRST: Final = re.compile(r"^([-+#=]|\d+(?=[.)](?:\s|$)))")


def one_line(text: str, longest: int = LONGEST) -> str:
    """On one line, without what cannot be seen, and cut with an ellipsis after so many characters."""
    line = " ".join(_HIDDEN.sub(" ", text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def plain(text: str, longest: int = LONGEST) -> str:
    """As text that a Markdown reader shows as it is: neither markup nor HTML, and nothing becomes a link."""
    line = _MARKUP.sub(r"\\\1", one_line(text, longest))
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", "&#58;//"), ("@", "&#64;")):
        line = line.replace(sign, entity)
    return _FIRST.sub(_as_text, re.sub(r"(?i)(www)\.", r"\1&#46;", line))


def _as_text(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(sign)};" for sign in match[1])


def code(text: str, longest: int = LONGEST) -> str:
    """As a span of code; as plain text where there is something in it that a careless reader could take for markup."""
    line = one_line(text, longest)
    if re.search(r"[`|<>\[\]]", line):
        return plain(line, longest)
    return f"`{line}`" if line else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines.

    Args:
        header: Titles.
        rows: Cells that are Markdown already.
    """
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(cell or NOT_STATED for cell in row)} |" for row in rows)]
