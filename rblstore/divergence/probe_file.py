"""Reading a file of prompts: JSON, JSON lines or lines of text, all of it possibly hostile. No torch, no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.fields import check_text

FILE_BYTES: Final = 16 << 20
PROMPTS: Final = 10_000
PROMPT_TOKENS: Final = 400_000
ID_BYTES: Final = 255
TOKEN_MAXIMUM: Final = (1 << 31) - 1

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class BadProbeError(InputError):
    """A prompt, or the file that holds it, cannot be part of a probe."""

    code = "bad_probe"


@dataclass(frozen=True)
class RawPrompt:
    """One prompt as its file gives it.

    Attributes:
        id: Unique in the file.
        text: What is to be tokenized, or None where token ids are given.
        tokens: Token ids, at least one, or None where text is given.
    """

    id: str
    text: str | None = None
    tokens: tuple[int, ...] | None = None


def parse_prompts(data: bytes, name: str) -> tuple[RawPrompt, ...]:
    """The prompts of a file, in its order.

    A name ending in ``.json`` is a JSON array and one in ``.jsonl`` or ``.ndjson`` holds one JSON value a line; each
    element is a string, or an object with ``text`` or ``tokens`` and, if wanted, ``id``. Anything else is text, one
    prompt a line. Blank lines are skipped. A prompt without an id of its own gets one from its place: ``p00``, ``p01``.

    Args:
        data: The file's bytes, UTF-8.
        name: The file's name; it decides the format and is named in messages.

    Raises:
        BadProbeError: The file or one of its prompts breaks the rules; the message names the prompt.
    """
    if len(data) > FILE_BYTES:
        raise BadProbeError(f"{name}: {len(data)} bytes, more than the {FILE_BYTES} allowed", object=name)
    data = data.removeprefix(_BYTE_ORDER_MARK)
    suffix = name.lower().rpartition(".")[2]
    if suffix == "json":
        elements = _json_array(data, name)
    elif suffix in ("jsonl", "ndjson"):
        elements = [_decode(line, f"{name}, line {number}") for number, line in _lines(data, name)]
    else:
        elements = [line for _, line in _lines(data, name)]
    _check_count(len(elements), name)
    prompts = tuple(_prompt(element, f"p{place:02d}", name) for place, element in enumerate(elements))
    _check_whole(prompts, name)
    return prompts


def _check_count(count: int, name: str) -> None:
    if count == 0:
        raise BadProbeError(f"{name}: no prompts", object=name, hint="Give at least one prompt.")
    if count > PROMPTS:
        raise BadProbeError(f"{name}: {count} prompts, more than the {PROMPTS} allowed", object=name)


def _check_whole(prompts: tuple[RawPrompt, ...], name: str) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise BadProbeError(f"{name}: two prompts have the id {prompt.id!r}", object=prompt.id)
        seen.add(prompt.id)
    total = sum(len(prompt.tokens) for prompt in prompts if prompt.tokens is not None)
    if total > PROMPT_TOKENS:
        raise BadProbeError(f"{name}: {total} tokens, more than the {PROMPT_TOKENS} allowed", object=name)


def _lines(data: bytes, name: str) -> list[tuple[int, str]]:
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise BadProbeError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})", object=name) from error
    # Not splitlines(): prompts may hold form feeds and the like, which end no line of a text file.
    numbered = ((number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in numbered if line.strip()]


def _decode(data: str | bytes, what: str) -> Any:
    raw = data.encode("utf-8") if isinstance(data, str) else data
    try:
        return decode_json(raw, what=what, max_bytes=FILE_BYTES, max_entries=limits.JSON_ENTRIES)
    except InputError as error:
        hint = "One JSON value a line is a .jsonl file." if isinstance(data, bytes) and b"\n" in data else None
        raise BadProbeError(error.message, object=error.object, hint=hint) from error


def _json_array(data: bytes, name: str) -> list[Any]:
    value = _decode(data, name)
    if not isinstance(value, list):
        raise BadProbeError(
            f"{name}: not a JSON array", object=name, hint='Write [{"id": "p00", "text": "..."}] or ["...", "..."].'
        )
    return value


def _prompt(element: Any, default: str, name: str) -> RawPrompt:
    if isinstance(element, str):
        return RawPrompt(default, text=_text(element, default, name))
    if not isinstance(element, dict):
        raise _refuse(name, default, f"is {_kind(element)}, neither text nor an object")
    id = _id(element.get("id", default), default, name)
    if unknown := sorted(set(element) - {"id", "text", "tokens"}):
        raise _refuse(name, id, f"has the unknown member {unknown[0][:80]!r}")
    if ("text" in element) == ("tokens" in element):
        raise _refuse(name, id, "must have either 'text' or 'tokens'")
    if "text" in element:
        return RawPrompt(id, text=_text(element["text"], id, name))
    return RawPrompt(id, tokens=_tokens(element["tokens"], id, name))


def _id(value: Any, default: str, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise _refuse(name, default, "has an id that is not printable text")
    try:
        return check_text(value, "its id", ID_BYTES)
    except InputError as error:
        raise _refuse(name, default, f"is refused: {error.message}") from error


def _text(value: Any, id: str, name: str) -> str:
    if value == "":
        raise _refuse(name, id, "is empty")
    try:
        return check_text(value, "its text")
    except InputError as error:
        raise _refuse(name, id, f"is refused: {error.message}") from error


def _tokens(value: Any, id: str, name: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _refuse(name, id, f"has {_kind(value)} for its tokens, not an array of integers")
    if not value:
        raise _refuse(name, id, "is empty: it has no tokens")
    for token in value:
        if type(token) is not int or not 0 <= token <= TOKEN_MAXIMUM:
            raise _refuse(name, id, f"has a token that is not an integer from 0 to {TOKEN_MAXIMUM}")
    return tuple(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "an array"}
    return kinds.get(type(value), "an object")


def _refuse(name: str, id: str, why: str) -> BadProbeError:
    return BadProbeError(f"{name}: prompt {id!r} {why}", object=id)
