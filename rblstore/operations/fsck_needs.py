"""Which files, behaviors and commits need what is damaged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from rblstore.errors import RblError
from rblstore.objects.content_records import Behavior, FileManifest, Identity
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import ContentId, PackId, RecordId
from rblstore.objects.record import Record
from rblstore.objects.references import files_of, references
from rblstore.operations.fsck_findings import WHOLE_ELSEWHERE, Findings, FsckDamage
from rblstore.operations.fsck_records import Records

_NEEDS: Final = 20
# A lost pack may hold thousands of tensors; what they are part of is worth more words.
_TENSORS: Final = 5
_NAMING_CONTENTS: Final = (
    FileManifest.KIND, Identity.KIND, Behavior.KIND, "baseline", "training-state", "signature", "statement",
)  # fmt: skip


def name_needs(found: Findings, records: Records) -> None:
    """Says of everything damaged what needs it, and of what is whole in another pack that nothing is lost."""
    objects: list[tuple[str, ...]] = []
    for damage in found.damages:
        if damage.kind == "pack":
            lost = found.lost.get(PackId(damage.object), ())
            objects.append(tuple(one for one in lost if whole_copy(found, one) is None))
        elif damage.kind in ("content", "reference", "record"):
            objects.append((damage.object,))
        else:
            objects.append(())
    needs = _Needs(found, records, {one for several in objects for one in several})
    found.damages = [
        _told(found, replace(damage, needed_by=needs.of(several)), several)
        for damage, several in zip(found.damages, objects, strict=True)
    ]


def _told(found: Findings, damage: FsckDamage, objects: tuple[str, ...]) -> FsckDamage:
    if damage.kind == "content":
        whole = whole_copy(found, ContentId(damage.object))
        if whole is not None:
            return replace(damage, problem=f"{damage.problem}; pack {whole.short} has it whole", hint=WHOLE_ELSEWHERE)
    if damage.kind == "pack" and not objects and found.lost.get(PackId(damage.object)):
        problem = f"{damage.problem}; other packs have all of it whole"
        return replace(damage, problem=problem, hint=WHOLE_ELSEWHERE)
    return damage


def whole_copy(found: Findings, content: ContentId) -> PackId | None:
    """A pack that holds a content whole, as far as is known by now; None where there is none."""
    bad = found.damaged.get(content, set())
    copies = found.ask(lambda reader: reader.all_locations(content)) or []
    return next((at.pack for at in copies if at.pack in found.raw and at.pack not in bad), None)


class _Needs:
    """Who refers to what, backwards."""

    def __init__(self, found: Findings, records: Records, damaged: set[str]) -> None:
        self._found = found
        self._records = records
        self._of_contents: dict[str, list[RecordId]] = {}
        wanted = damaged | {above for one in damaged for above in found.differences.get(one, ())}
        contents = {one for one in wanted if one not in records.users}
        if contents:
            for record_id, record in records.of_kinds(*_NAMING_CONTENTS):
                for target, what in references(record):
                    if what == "content" and target in contents:
                        self._of_contents.setdefault(target, []).append(record_id)

    def of(self, damaged: Iterable[str]) -> tuple[str, ...]:
        words: list[str] = []
        queue = deque(damaged)
        queue.extend([content for base in queue for content in self._found.differences.get(base, ())])
        seen, tensors = set(queue), 0
        while queue and len(words) < _NEEDS:
            target = queue.popleft()
            for user in (*self._of_contents.get(target, ()), *self._records.users.get(target, ())):
                manifest = self._records.kinds[user] == FileManifest.KIND
                if (manifest and tensors < _TENSORS) or (not manifest and user not in seen):
                    tensors += manifest
                    words.append(self._described(user, target))
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
        return tuple(dict.fromkeys(words))[:_NEEDS]

    def _described(self, record_id: RecordId, target: str) -> str:
        try:
            return described(record_id, self._records.load(record_id), target)
        except RblError:
            return f"{self._records.kinds[record_id]} {record_id.short}"


def described(record_id: RecordId, record: Record, target: str) -> str:
    """A record in words, as one that needs something: with the tensor or file that it needs it for.

    Args:
        record_id: Its id.
        record: The record.
        target: The id of what it needs.
    """
    if isinstance(record, FileManifest):
        names = [entry.name for entry in record.tensors if entry.tensor.content == target]
        return f"tensor {names[0]}" if names else f"header of file {record_id.short}"
    if files := files_of(record):
        paths = [entry.path for entry in files if target in (entry.sha256, entry.manifest)]
        return f"{record.KIND} {record_id.short}" + (f" ({paths[0]})" if paths else "")
    if isinstance(record, Commit):
        return f"commit {record_id.short} ({record.subject[:60]})"
    return f"{record.KIND} {record_id.short}"
