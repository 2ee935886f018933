"""What the files beside the weights say about them: licences, sources, datasets. Claims, which nobody here believes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.evidence_records import Claim
from rblstore.objects.fields import check_text

if TYPE_CHECKING:
    import yaml

Card: TypeAlias = "str | list[Card] | dict[str, Card] | None"
Reader: TypeAlias = Callable[[], bytes]
Recogniser: TypeAlias = Callable[[bytes], "tuple[str, str] | None"]

NOT_READ: Final = "not_read"
"""Key of a claim that something was said in a file and could not be read, and why."""

FRONT_MATTER_BYTES: Final = 256 << 10
_FRONT_MATTER: Final = re.compile(
    r"\A\ufeff?\s{0,16}---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
# A rule across the page is no front matter: what follows is no member.
_BEGUN: Final = re.compile(
    r"\A\ufeff?\s{0,16}---[ \t]*\r?\n\s{0,16}(license|base_model|datasets|tags|language)\w{0,16}:"
)
_LICENSE_FILE: Final = re.compile(r"(licen[sc]e|notice|copying|use_policy)([._-].*)?", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_CLAIMS: Final = 1000
_MAX_DEPTH: Final = 32
_NULLS: Final = ("", "~", "null", "Null", "NULL")

# Member of the front matter: key of the claim.
_CARD_KEYS: Final = {
    "license": "license",
    "license_name": "license_name",
    "license_link": "license_link",
    "base_model": "base_model",
    "base_model_relation": "base_model_relation",
    "datasets": "dataset",
    "language": "language",
}


class _CardError(Exception):
    """The front matter is not something to read claims from."""


def _front_matter(text: str) -> str | None:
    match = _FRONT_MATTER.match(text)
    if match is None:
        if _BEGUN.match(text):
            raise _CardError("its front matter has no end")
        return None
    if len(match.group(1)) > FRONT_MATTER_BYTES:
        raise _CardError(f"its front matter is longer than {FRONT_MATTER_BYTES} characters")
    return match.group(1)


def _events(text: str) -> Iterator[yaml.Event]:
    import yaml

    # Events only: nothing is constructed, so no tag, date or alias of the document's choosing means anything.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from yaml.parse(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _CardError("its front matter is not valid YAML") from error


def _value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Card:
    import yaml

    if depth > _MAX_DEPTH:
        raise _CardError(f"its front matter is nested deeper than {_MAX_DEPTH}")
    if isinstance(event, yaml.AliasEvent):
        raise _CardError("its front matter uses YAML aliases")
    if isinstance(event, yaml.ScalarEvent):
        # Every scalar stays text: 'license: no' is not False here, and 1.10 not 1.1.
        return None if not event.style and event.value in _NULLS else str(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Card] = []
        while not isinstance(following := next(events), yaml.SequenceEndEvent):
            items.append(_value(following, events, depth + 1))
        return items
    members: dict[str, Card] = {}
    while not isinstance(following := next(events), yaml.MappingEndEvent):
        key = _value(following, events, depth + 1)
        value = _value(next(events), events, depth + 1)
        if not isinstance(key, str):
            continue
        if key in members:
            raise _CardError(f"its front matter has the key {key[:80]!r} twice")
        members[key] = value
    return members


def _parse_card(text: str) -> dict[str, Card]:
    import yaml

    matter = _front_matter(text)
    if matter is None:
        return {}
    events = _events(matter)
    try:
        for event in events:
            if isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent, yaml.AliasEvent)):
                card = _value(event, events, 0)
                return card if isinstance(card, dict) else {}
    except StopIteration as error:  # the parser ends every collection that it begins; a defect of its would end here
        raise _CardError("its front matter is not valid YAML") from error
    return {}


class _Gathering:
    """Claims and warnings as they are found."""

    def __init__(self, recognise: Recogniser) -> None:
        self._recognise = recognise
        self.claims: set[Claim] = set()
        self._unread: dict[Claim, None] = {}

    def unread(self, origin: str, why: str) -> None:
        """Notes what was not understood: whoever looks later is to know that something was said."""
        self._unread[Claim(NOT_READ, why, origin)] = None

    def warn(self, origin: str, why: str) -> None:
        self.unread(origin, f"{why}; nothing that it says is recorded")

    def result(self) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
        """Claims, those about what was not understood among them, and the same as warnings."""
        warnings = tuple(f"{claim.origin}: {claim.value}" for claim in self._unread)
        return tuple(sorted({*self.claims, *self._unread})), warnings

    def claim(self, key: str, value: Any, origin: str) -> None:
        """Adds a claim for a text, one for each text of a list; for anything else a warning, or nothing for nothing."""
        if isinstance(value, list):
            for item in value:
                self.claim(key, {} if isinstance(item, list) else item, origin)
            return
        if value is not None and not isinstance(value, str):
            self.unread(origin, f"{key} is neither text nor a list of texts; it is not recorded")
            return
        if not value or not (text := value.strip()):
            return
        try:
            check_text(text, key)
        except InputError as error:
            self.unread(origin, f"{error.message}; it is not recorded")
            return
        if _CONTROL.search(text):
            self.unread(origin, f"{key} has control characters; it is not recorded")
        elif len(self.claims) < _MAX_CLAIMS:
            self.claims.add(Claim(key, text, origin))
        else:
            self.unread(origin, f"more than {_MAX_CLAIMS} claims; the rest are not recorded")

    def content(self, path: str, read: Reader) -> bytes | None:
        """A file's bytes, or None with a warning where it is too long."""
        data = read()
        if len(data) > limits.MODEL_CARD_BYTES:
            self.warn(path, f"longer than {limits.MODEL_CARD_BYTES} bytes")
            return None
        return data

    def card(self, path: str, data: bytes) -> None:
        try:
            card = _parse_card(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.warn(path, "it is not UTF-8")
        except _CardError as error:
            self.warn(path, str(error))
        else:
            for member, key in _CARD_KEYS.items():
                self.claim(key, card.get(member), path)

    def json(self, path: str, data: bytes) -> dict[str, Any]:
        try:
            value = decode_json(data, what=path, max_bytes=limits.MODEL_CARD_BYTES)
        except InputError as error:
            self.warn(path, error.message.removeprefix(f"{path}: "))
            return {}
        return value if isinstance(value, dict) else {}

    def file(self, path: str, read: Reader) -> None:
        name = path.rsplit("/", 1)[-1]
        if path == "README.md" and (data := self.content(path, read)) is not None:
            self.card(path, data)
        elif path == "config.json" and (data := self.content(path, read)) is not None:
            called = self.json(path, data).get("_name_or_path")
            self.claim("name", called if isinstance(called, str) else None, path)
        elif path == "adapter_config.json" and (data := self.content(path, read)) is not None:
            config = self.json(path, data)
            base, revision = config.get("base_model_name_or_path"), config.get("revision")
            if isinstance(base, str) and base.strip():
                self.claim("base_model", base, path)
                self.claim("base_revision", revision if isinstance(revision, str) else None, path)
        elif _LICENSE_FILE.fullmatch(name) and (data := self.content(path, read)) is not None:
            self.claim("license_file", license_file_value(path, data, self._recognise(data)), path)


def license_file_value(path: str, data: bytes, recognised: tuple[str, str] | None) -> str:
    """What a claim says of a file with terms: path and digest, and what it was recognised as and how.

    Args:
        path: Where it lies.
        data: Its bytes.
        recognised: An expression, and ``text`` or ``title``; None where it is not known.
    """
    known = "" if recognised is None else f" {recognised[0]} by {recognised[1]}"
    return f"{path} sha256:{hashlib.sha256(data).hexdigest()}{known}"


def claims_from_files(
    files: Mapping[str, Callable[[], bytes]], recognise: Recogniser = lambda data: None
) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """What a model's own files say about it.

    Read are README.md's front matter, ``_name_or_path`` of config.json, base and revision in adapter_config.json, and
    which licence and notice files there are. Hostile content gives a warning and no other claims; it never raises.

    Args:
        files: Relative path to a function that gives the file's bytes. Only those of the files above are called, and
            they need not give more than ``limits.MODEL_CARD_BYTES + 1`` bytes: a longer file is passed over.
        recognise: Which licence a text is and whether by all of it (``text``) or its ``title``; None where unknown.

    Returns:
        Claims, sorted and none repeated, each with the file's path as its origin; and warnings, each of which is also a
        claim ``not_read``.
    """
    gathering = _Gathering(recognise)
    for path in sorted(files):
        gathering.file(path, files[path])
    return gathering.result()
