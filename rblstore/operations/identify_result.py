"""What ``identify`` says of loose files: what they are, by digest, and apart from that what they resemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rblstore.objects.ids import CommitId, ContentId, RecordId
from rblstore.operations.result import Result

Verdict = Literal["exact", "cast", "merged", "relative", "unknown"]
Likeness = Literal["cast", "merged", "relative", "parts"]
Role = Literal["identity", "behavior", "composition"]
How = Literal["files", "tensors", "merged"]


@dataclass(frozen=True)
class CommitsFound:
    """Commits that hold something.

    Attributes:
        newest: At most 20 of them, newest first.
        first: The oldest; None where no branch or tag leads to any.
        count: How many there are.
    """

    newest: tuple[CommitId, ...]
    first: CommitId | None
    count: int


@dataclass(frozen=True)
class IdentifiedFile:
    """One file.

    Attributes:
        path: Relative to the directory that was given; of a file that was given itself, as it was given.
        size: Bytes.
        sha256: Of the whole file.
        holders: Identities and behaviors that came with a file of just these bytes.
    """

    path: str
    size: int
    sha256: ContentId
    holders: tuple[RecordId, ...]


@dataclass(frozen=True)
class ExactMatch:
    """What a model is, by digests alone.

    Attributes:
        role: ``identity``, ``behavior``, or ``composition`` for what several parts come to.
        id: Its id.
        name: The slot's name, or what the identity is called; "" where it has none.
        how: ``files`` where every weight file is one of its files; ``tensors`` where the same tensors lie in other
            files; ``merged`` where they are what its merged checkout holds, computed anew and compared by digest.
        whole: Whether nothing of it is lacking; else the tensors are some of its tensors.
        renamed: How many of the tensors have other names than in it.
        lacking: How many of its tensors are not there.
        differing: Files beside the weights that it has too, with other bytes: its config, an adapter's settings.
        commits: Where it is.
    """

    role: Role
    id: RecordId
    name: str
    how: How
    whole: bool
    renamed: int
    lacking: int
    differing: tuple[str, ...]
    commits: CommitsFound


@dataclass(frozen=True)
class MergedBehavior:
    """A stored behavior that a difference has in it.

    Attributes:
        id: Its id.
        name: The slot's name.
        weight: By how much, fitted by least squares; 1 for an adapter that was merged as it is.
        cosine: Of its own difference with the whole one.
    """

    id: RecordId
    name: str
    weight: float
    cosine: float


@dataclass(frozen=True)
class ThinDifference:
    """The low-rank difference between a model and what it resembles.

    Attributes:
        tensors: How many matrices differ.
        sampled: How many of them were looked at.
        rank: The largest rank among these; at least that, since what is below the rounding noise is not seen.
        energy: The part of a squared difference that its rank holds, from 0 to 1; the median. Rounding is the rest.
        behaviors: Stored behaviors that it consists of, the strongest first.
        explained: The part of the squared difference that these account for together, from 0 to 1.
        commits: The commits that compose exactly these on top of what is resembled, where nothing else differs.
    """

    tensors: int
    sampled: int
    rank: int
    energy: float
    behaviors: tuple[MergedBehavior, ...]
    explained: float
    commits: CommitsFound


@dataclass(frozen=True)
class Resemblance:
    """What a model is like without being it. Tensors correspond by name, up to a model's prefix, and by shape.

    Attributes:
        role: As for an :class:`ExactMatch`.
        id: Its id.
        name: As for an :class:`ExactMatch`.
        kind: ``cast`` (every tensor is equal, or its values rounded to another element type), ``merged`` (it plus a
            low-rank difference), ``relative`` (much of it is equal or close), ``parts`` (little is; it proves nothing).
        equal: Tensors of the same bits; their share of the model is ``equal / tensors``.
        cast: Tensors that are its values rounded to another element type, all compared.
        close: Matrices that differ and correlate by 0.5 or more, by a sample of their rows, or differ by low rank.
        unlike: Other matrices that correlate by less.
        other: Tensors with a counterpart that were not compared: vectors, types that are no floats, what is gone.
        added: Tensors without a counterpart.
        lacking: Its tensors that the model does not have.
        equal_bytes: Bytes of the equal tensors.
        like_bytes: Bytes of those that are equal, cast or close.
        from_dtypes: Element types of its tensors that were cast.
        to_dtypes: What they were cast to.
        correlation: Median over close and unlike matrices; None where there are none.
        bits_apart: Mean of the bits that differ in an element of them, of one element type; None where there are none.
        difference: What differs, where it is of low rank.
        commits: Where it is.
    """

    role: Role
    id: RecordId
    name: str
    kind: Likeness
    equal: int
    cast: int
    close: int
    unlike: int
    other: int
    added: int
    lacking: int
    equal_bytes: int
    like_bytes: int
    from_dtypes: tuple[str, ...]
    to_dtypes: tuple[str, ...]
    correlation: float | None
    bits_apart: float | None
    difference: ThinDifference | None
    commits: CommitsFound


@dataclass(frozen=True)
class FittingIdentity:
    """An identity that an adapter could be attached to; that does not say that it was made for it.

    Attributes:
        id: Its id.
        name: What it is called.
    """

    id: RecordId
    name: str


@dataclass(frozen=True)
class UnreadEntry:
    """Something in a directory that is no file to read.

    Attributes:
        path: Relative to the directory.
        reason: Why: a link that leads nowhere or to a folder, a fifo.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class IdentifiedModel:
    """The safetensors files of one folder, taken as one model.

    Attributes:
        path: The folder relative to what was given, "." for that itself; the file, where one was given.
        files: Paths of these.
        tensors: How many there are.
        size: Their bytes.
        verdict: ``exact`` where a digest says what it is; ``cast``, ``merged`` or ``relative`` where it resembles
            something; else ``unknown``.
        exact: What it is, everything whole before everything of which it is a part.
        resembling: What it is like, the likest first. Nothing is looked for where ``exact`` has an answer.
        candidates: How many stored models were considered for that by names and shapes.
        fitting: How many of them have counterparts for a tenth of the bytes or more.
        compared: How many of these, the likest by a few rows, were compared by values.
        fits: Identities with every tensor that an unknown adapter changes, in its shape.
        base_named: What an unknown adapter's settings say that it was made for; None where they say nothing.
    """

    path: str
    files: tuple[str, ...]
    tensors: int
    size: int
    verdict: Verdict
    exact: tuple[ExactMatch, ...]
    resembling: tuple[Resemblance, ...]
    candidates: int
    fitting: int
    compared: int
    fits: tuple[FittingIdentity, ...]
    base_named: str | None


@dataclass(frozen=True)
class IdentifyResult(Result):
    """What lies at a path.

    Attributes:
        path: As it was given.
        files: Every file, sorted by path.
        unread: What else lies there and was not looked at, sorted by path.
        models: One for each folder that holds safetensors files, sorted by path.
        commits: The commits whose weights these files are, all of them and no others, by digest.
    """

    path: str
    files: tuple[IdentifiedFile, ...]
    unread: tuple[UnreadEntry, ...]
    models: tuple[IdentifiedModel, ...]
    commits: CommitsFound

    @property
    def unknown(self) -> bool:
        """Whether something was not recognised: a model, a file where there is no model, or what cannot be read."""
        if self.unread:
            return True
        if self.models:
            return any(model.verdict == "unknown" for model in self.models)
        return not all(file.holders for file in self.files)
