"""Training states: what a training run needs besides the weights to go on exactly where a commit was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rblstore.objects.canonical import Json
from rblstore.objects.content_records import FileEntry, read_files
from rblstore.objects.fields import Fields
from rblstore.objects.ids import CommitId, RecordId, TrainingStateId
from rblstore.objects.record import Record


@dataclass(frozen=True)
class TrainingState(Record):
    """The state of an optimizer, a scheduler and random generators at a commit.

    Attributes:
        commit: The commit that was made in this state; the state lives while it does.
        files: Sorted by path; ``state.json`` and ``state.safetensors`` as rblstore writes them.
        step: Optimizer steps done.
        environment: Versions of what wrote the state, as flat text.
        author: Who.
        time: RFC 3339.
    """

    KIND: ClassVar[str] = "training-state"
    ID: ClassVar[type[RecordId]] = TrainingStateId

    commit: CommitId
    files: tuple[FileEntry, ...]
    step: int
    environment: dict[str, str]
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "commit": str(self.commit),
            "environment": dict(self.environment),
            "files": [entry.body() for entry in self.files],
            "step": self.step,
            "time": self.time,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> TrainingState:
        return cls(
            fields.id("commit", CommitId),
            read_files(fields, 1),
            fields.integer("step"),
            fields.text_map("environment"),
            fields.text("author"),
            fields.time("time"),
        )
