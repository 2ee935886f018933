"""Writing HTML in which nothing that others wrote is markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

from rblstore.report.safe_text import visible

_TAG: Final = re.compile(r"<[^<>]*>")
_ID: Final = re.compile(r'(?<=\sid=")([^"]*)(?=")')
_LINK: Final = re.compile(r'(?<=href="#)([^"]*)(?=")|(?<=url\(#)([^)"]*)(?=\))')
_NOT_DRAWN: Final = re.compile(
    r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", re.DOTALL
)
_SIZE: Final = re.compile(r'\s(?:width|height|xmlns:xlink|xmlns|version)="[^"]*"')


class Markup(str):
    """Text that is HTML already; anything else is escaped where it is put in."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Text as HTML: escaped, its hidden characters made visible."""
    return Markup(html.escape(visible(value), quote=True))


def element(name: str, *children: str | Iterable[str], **attributes: str | bool | None) -> Markup:
    """One element.

    Args:
        name: Of the element, ours.
        children: Text, which is escaped, or :class:`Markup`, which is not; or several of either.
        attributes: Their values are escaped; a trailing underscore of a name is dropped, others become hyphens. True
            writes the name alone, None and False nothing.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        parts.append(f" {spelled}" if value is True else f' {spelled}="{text(str(value))}"')
    parts.append(">")
    parts.append(join(*children))
    parts.append(f"</{name}>")
    return Markup("".join(parts))


def join(*children: str | Iterable[str]) -> Markup:
    """Several pieces of text and markup, one after the other."""
    pieces: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            pieces.append(child)
        elif isinstance(child, str):
            pieces.append(text(child))
        else:
            pieces.append(join(*child))
    return Markup("".join(pieces))


def foreign(value: str, **attributes: str) -> Markup:
    """Text that somebody else wrote: its direction cannot reach what stands beside it."""
    return element("bdi", value, dir="auto", **attributes)


def inline_svg(drawn: bytes, prefix: str, title: str, description: str) -> Markup:
    """A picture that matplotlib drew, as part of a page: with ids of its own, without a size, and with words beside it.

    Args:
        drawn: The SVG document.
        prefix: What its ids begin with, unique on the page.
        title: What it is.
        description: What it shows.
    """
    source = _NOT_DRAWN.sub("", drawn.decode("utf-8")).strip()
    opening, _, rest = source.partition(">")
    opening = _SIZE.sub("", opening)

    def own(match: re.Match[str]) -> str:
        tag = _ID.sub(lambda found: f"{prefix}-{found.group(0)}", match.group(0))
        return _LINK.sub(lambda found: f"{prefix}-{found.group(0)}", tag)

    inner = _TAG.sub(own, rest)
    words = element("title", title, id=f"{prefix}-title") + element("desc", description, id=f"{prefix}-desc")
    return Markup(f'{opening} role="img" aria-labelledby="{prefix}-title {prefix}-desc" class="figure">{words}{inner}')
