"""Records of history: compositions, commits, tags and operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rblstore.errors import InputError, UsageError
from rblstore.objects import limits
from rblstore.objects.canonical import Json
from rblstore.objects.fields import Fields, require_sorted
from rblstore.objects.ids import (
    BehaviorId,
    CommitId,
    CompositionId,
    IdentityId,
    OperationId,
    RecordId,
    TagId,
    is_full_id,
)
from rblstore.objects.paths import check_name, check_path, check_ref_name
from rblstore.objects.record import Record

SYMBOLIC = "ref: "


@dataclass(frozen=True)
class Slot:
    """One named place of a composition.

    Attributes:
        name: The behavior's name here, unique in the composition.
        behavior: What is in it.
        weight: Scale of an additive adapter; 1.0 for anything else.
    """

    name: str
    behavior: BehaviorId
    weight: float = 1.0

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"behavior": str(self.behavior), "name": self.name, "weight": self.weight}

    @classmethod
    def read(cls, value: Any) -> Slot:
        """Reads one element of a composition."""
        fields = Fields(value, "slot")
        slot = cls(fields.text("name", limits.NAME_BYTES), fields.id("behavior", BehaviorId), fields.number("weight"))
        fields.done()
        try:
            check_name(slot.name, "behavior")
        except UsageError as error:
            raise InputError(error.message, object=error.object) from error
        return slot


@dataclass(frozen=True)
class Composition(Record):
    """An identity and an ordered list of behaviors: what git calls a tree.

    Attributes:
        identity: The base checkpoint.
        slots: In the order in which they are applied.
    """

    KIND: ClassVar[str] = "composition"
    ID: ClassVar[type[RecordId]] = CompositionId

    identity: IdentityId
    slots: tuple[Slot, ...] = ()

    def body(self) -> dict[str, Json]:
        return {"identity": str(self.identity), "slots": [slot.body() for slot in self.slots]}

    @classmethod
    def from_fields(cls, fields: Fields) -> Composition:
        composition = cls(fields.id("identity", IdentityId), fields.items("slots", Slot.read))
        require_sorted(sorted(slot.name.casefold() for slot in composition.slots), "composition record: slot names")
        return composition

    def slot(self, name: str) -> Slot | None:
        """The slot of that name, or None."""
        return next((slot for slot in self.slots if slot.name == name), None)


@dataclass(frozen=True)
class Commit(Record):
    """A composition at one point of history.

    Attributes:
        composition: What the model is made of.
        parents: None for a root, two or more for a merge.
        author: ``Name <address>`` or any line of text.
        time: RFC 3339.
        message: Any text; its first line is the subject.
    """

    KIND: ClassVar[str] = "commit"
    ID: ClassVar[type[RecordId]] = CommitId

    composition: CompositionId
    parents: tuple[CommitId, ...]
    author: str
    time: str
    message: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "composition": str(self.composition),
            "message": self.message,
            "parents": [str(parent) for parent in self.parents],
            "time": self.time,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Commit:
        commit = cls(
            fields.id("composition", CompositionId),
            fields.items("parents", CommitId),
            fields.text("author"),
            fields.time("time"),
            fields.text("message", limits.MESSAGE_BYTES),
        )
        require_sorted(sorted(commit.parents), "commit record: parents")
        return commit

    @property
    def subject(self) -> str:
        """The message's first line."""
        return self.message.split("\n", 1)[0]


@dataclass(frozen=True)
class Tag(Record):
    """A named, dated pointer at a commit.

    Attributes:
        name: Without ``refs/tags/``.
        target: The commit.
        author: Who tagged.
        time: RFC 3339.
        message: May be empty.
    """

    KIND: ClassVar[str] = "tag"
    ID: ClassVar[type[RecordId]] = TagId

    name: str
    target: CommitId
    author: str
    time: str
    message: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "message": self.message,
            "name": self.name,
            "target": str(self.target),
            "time": self.time,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Tag:
        tag = cls(
            fields.text("name", limits.NAME_BYTES),
            fields.id("target", CommitId),
            fields.text("author"),
            fields.time("time"),
            fields.text("message", limits.MESSAGE_BYTES),
        )
        try:
            check_ref_name(tag.name, "tag")
        except UsageError as error:
            raise InputError(error.message, object=error.object) from error
        return tag


@dataclass(frozen=True)
class RefChange:
    """One ref before and after an operation.

    Attributes:
        ref: Full name: ``HEAD``, ``PROBE``, ``refs/heads/...``, ``refs/tags/...`` or ``refs/probes/...``.
        before: Its value: an object id, ``ref: <full name>`` for a symbolic ref, or None where it did not exist.
        after: The same, afterwards.
    """

    ref: str
    before: str | None
    after: str | None

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"after": self.after, "before": self.before, "ref": self.ref}

    @classmethod
    def read(cls, value: Any) -> RefChange:
        """Reads one element of an operation."""
        fields = Fields(value, "ref change")
        change = cls(
            fields.text("ref", limits.PATH_BYTES),
            fields.optional_text("before", limits.PATH_BYTES),
            fields.optional_text("after", limits.PATH_BYTES),
        )
        fields.done()
        check_path(change.ref)
        for state in (change.before, change.after):
            if state is not None and state.startswith(SYMBOLIC):
                check_path(state[len(SYMBOLIC) :])
            if state is not None and not is_full_id(state) and not state.startswith(SYMBOLIC):
                raise InputError(f"ref change of {change.ref!r}: {state!r} is neither an id nor a symbolic ref")
        return change


@dataclass(frozen=True)
class Operation(Record):
    """One change of refs: what the operation log is made of.

    Attributes:
        sequence: 1 for the first, then without gaps.
        previous: The operation before, None for the first.
        description: What was done, one line ("commit: base").
        changes: Every ref that changed, sorted by name.
        undoes: The operation that this one reverses, or None.
        author: Who did it.
        time: RFC 3339.
    """

    KIND: ClassVar[str] = "operation"
    ID: ClassVar[type[RecordId]] = OperationId

    sequence: int
    previous: OperationId | None
    description: str
    changes: tuple[RefChange, ...]
    undoes: OperationId | None
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "changes": [change.body() for change in self.changes],
            "description": self.description,
            "previous": None if self.previous is None else str(self.previous),
            "sequence": self.sequence,
            "time": self.time,
            "undoes": None if self.undoes is None else str(self.undoes),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Operation:
        operation = cls(
            fields.integer("sequence", minimum=1),
            fields.optional_id("previous", OperationId),
            fields.text("description"),
            fields.items("changes", RefChange.read),
            fields.optional_id("undoes", OperationId),
            fields.text("author"),
            fields.time("time"),
        )
        require_sorted([change.ref for change in operation.changes], "operation record: changes")
        if (operation.previous is None) != (operation.sequence == 1):
            raise InputError(f"operation {operation.sequence}: its previous operation does not fit its sequence")
        return operation
