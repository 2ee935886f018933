"""What a person says about an identity or behavior, at commit or later: checked, and made into claims."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from rblstore.checkpoints.model_card import license_file_value
from rblstore.errors import InputError, UsageError
from rblstore.objects import limits
from rblstore.objects.evidence_records import Claim
from rblstore.objects.fields import check_text
from rblstore.objects.paths import given_path
from rblstore.operations.claims import RETRACTED
from rblstore.provenance.license_texts import recognise
from rblstore.provenance.licenses import LicenseError, nearest, normalise
from rblstore.provenance.said import split_revision

# Keys of free metadata that are keys of claims of their own.
_KNOWN: Final = ("source", "base_model", "dataset", "license", "license_link", "license_name")
_LICENSES: Final = ("license", "license_concluded")
_TEXT: Final = "Give a file that holds the licence's text."
_AT_HUB: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+@[\w.-]+")


class BadLicenseError(UsageError):
    """A licence that a person gave is no SPDX expression and no name that is known."""

    code: ClassVar[str] = "bad_license"


@dataclass(frozen=True)
class Told:
    """What somebody says.

    Attributes:
        license: An SPDX expression or a hub's licence id.
        license_file: A file with the terms; it is stored, and recorded are its name, its digest and what it is.
        datasets: ``NAME[@REVISION][=LICENSE]``; or licences, None where unknown, by ``NAME[@REVISION]``.
        source: Where it comes from: ``ORG/NAME[@REVISION]`` of a hub, a URL, words.
        base_revision: Which commit of its base it was made for.
        concluded: What licence it is under in the judgement of who says this, ``NOASSERTION`` for none.
        meta: Free keys; ``source``, ``base_model``, ``dataset`` keep their names, others become ``meta.<key>``.
        retract: What stands no more, without anything in its place: ``KEY``, or ``KEY=VALUE``.
    """

    license: str | None = None
    license_file: str | Path | None = None
    datasets: Sequence[str] | Mapping[str, str | None] = ()
    source: str | None = None
    base_revision: str | None = None
    concluded: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    retract: Sequence[str] = ()

    def __bool__(self) -> bool:
        given = (self.license, self.license_file, self.source, self.base_revision, self.concluded)
        return any(one is not None for one in given) or bool(self.datasets or self.meta or self.retract)

    def claims(self, origin: str) -> tuple[Claim, ...]:
        """All of it; see :meth:`statement`."""
        return self.statement(origin)[0]

    def statement(self, origin: str) -> tuple[tuple[Claim, ...], tuple[bytes, ...]]:
        """All of it, and the texts that go with it.

        Args:
            origin: ``command line`` or ``api``.

        Raises:
            BadLicenseError: A licence that nobody knows, with those that look like it.
            UsageError: An empty key or value.
            InputError: Text that no record could hold, or a file that cannot be read.
        """
        pairs = [("license", self.license), ("license_concluded", self.concluded)]
        pairs += [("base_revision", self.base_revision), *self._source()]
        if not isinstance(self.meta, Mapping):
            raise UsageError(f"'meta' has values by key, and is no {type(self.meta).__name__}", hint="{'team': 'core'}")
        pairs += [(key if key in _KNOWN else f"meta.{key}", value) for key, value in self.meta.items()]
        for name, license in _data_sets(self.datasets):
            pairs += [("dataset", name), *([] if license is None else [("dataset_license", f"{name}={license}")])]
        pairs += [(RETRACTED, what) for what in _listed(self.retract, "retract", "KEY[=VALUE]")]
        claims = [Claim(key, _checked(key, value), origin) for key, value in pairs if value is not None]
        if self.license_file is None:
            return tuple(claims), ()
        file = given_path(self.license_file)
        text = _license_text(file)
        value = license_file_value(file.name, text, recognise(text))
        claims.append(Claim("license_file", check_text(value, "license_file of the statement"), origin))
        return tuple(claims), (text,)

    def _source(self) -> list[tuple[str, str | None]]:
        if not isinstance(self.source, str) or not _AT_HUB.fullmatch(self.source):
            return [("source", self.source)]
        name, revision = split_revision(self.source)
        return [("source", name), ("source_revision", revision)]


def check_license(text: str, what: str = "licence") -> None:
    """Refuses a licence that a person gave and that is none.

    Raises:
        BadLicenseError: It is no SPDX expression and no name that is known.
    """
    try:
        normalise(text)
    except LicenseError as error:
        near = nearest(text)
        raise BadLicenseError(
            f"{what}: {error.message}",
            object=text[:80],
            hint=("Did you mean " + " or ".join(near) + "? " if near else "")
            + "Give an SPDX expression, a hub's licence id, LicenseRef-NAME for terms of your own, or NOASSERTION.",
        ) from error


def _checked(key: str, value: str) -> str:
    check_text(value, f"{key} of the statement")
    if not value.strip() or key == "meta.":
        raise UsageError(
            f"the statement {key!r} is empty",
            object=key,
            hint="Leave it out where nothing is to be said; --retract KEY takes back what was said.",
        )
    if key in _LICENSES:
        check_license(value)
    elif key == "dataset_license":
        check_license(value.rpartition("=")[2], f"licence of {split_revision(value.rpartition('=')[0])[0]}")
    return value


def _data_sets(datasets: Sequence[str] | Mapping[str, str | None]) -> list[tuple[str, str | None]]:
    """Names, with a revision where one is given, and licences."""
    if isinstance(datasets, Mapping):
        return list(datasets.items())
    found: list[tuple[str, str | None]] = []
    for given in _listed(datasets, "datasets", "NAME[@REVISION][=LICENSE]"):
        name, separator, license = given.rpartition("=")
        if separator and not (name.strip() and license.strip()):
            raise UsageError(
                f"{given[:80]!r} is not NAME[@REVISION][=LICENSE]", object=given[:80], hint="Name data set and licence."
            )
        found.append((name, license) if separator else (given, None))
    return found


def _listed(given: Iterable[str], what: str, shape: str) -> tuple[str, ...]:
    """A list of texts as somebody gave it; the types say so, and a notebook does not read them."""
    found = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(one, str) for one in found) or (given and not found):
        kind = "text" if isinstance(given, str) else "something else"
        raise UsageError(f"{what!r} is a list of {shape}, and {kind} was given", object=what, hint=f"[{shape!r}, ...]")
    return found


def _license_text(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limits.MODEL_CARD_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path!s:.200} cannot be read: {getattr(error, 'strerror', None) or error}",
            object=str(path)[:200],
            hint=_TEXT,
        ) from error
    if not data.strip():
        raise InputError(f"{path!s:.200} is empty", object=str(path)[:200], hint=_TEXT)
    if len(data) > limits.MODEL_CARD_BYTES:
        raise InputError(
            f"{path!s:.200} is longer than {limits.MODEL_CARD_BYTES} bytes, which no licence is",
            object=str(path)[:200],
            hint=_TEXT,
        )
    return data
