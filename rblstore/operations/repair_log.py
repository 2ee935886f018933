"""The operation log as it can be put together again: from its own lines, the catalog's rows, and other copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rblstore.objects.history_records import Operation
from rblstore.objects.ids import OperationId
from rblstore.storage.log_salvage import encode_log, salvage_log


@dataclass(frozen=True)
class LogPlan:
    """What the log is to hold.

    Attributes:
        operations: From the first one on, without gaps.
        refs: What refs are after all that could be read, operations that have lost their place included.
        moved: What each ref was before, the latest last.
        complete: Whether no operation is known to be missing.
        damage: What is wrong with the log as it is, or None.
        missing: Whether it lacks operations that are known.
    """

    operations: tuple[Operation, ...]
    refs: Mapping[str, str]
    moved: Mapping[str, Sequence[str]]
    complete: bool
    damage: str | None
    missing: bool

    @property
    def data(self) -> bytes:
        """The bytes of a log that holds them."""
        return encode_log(self.operations)


def operation_id(operation: Operation) -> OperationId:
    """An operation's id."""
    return OperationId(Operation.id_of(operation.encode()))


def plan_log(
    data: bytes, recorded: Iterable[Operation] | None, elsewhere: Callable[[], Mapping[OperationId, Operation]]
) -> LogPlan:
    """Puts the operation log together: its valid beginning, and then whatever follows from it, by its digest.

    Args:
        data: The log's bytes.
        recorded: The operations of the catalog, as far as they can be read; None without a catalog.
        elsewhere: Operations that other copies of the repository know. They close gaps, and never add to the end: what
            comes last in a repository nobody else decides.
    """
    salvaged = salvage_log(data)
    own: dict[OperationId, Operation] = {}
    for operation in (*salvaged.operations, *salvaged.later, *(recorded or ())):
        own.setdefault(operation_id(operation), operation)
    chain = list(salvaged.operations)
    after = {operation.previous: operation for operation in reversed(list(own.values()))}
    while (following := after.get(operation_id(chain[-1]) if chain else None)) is not None:
        chain.append(following)
    length = chain[-1].sequence if chain else 0
    beyond = sorted((one for one in own.values() if one.sequence > length), key=lambda one: one.sequence)
    if beyond:
        gap = _gap(chain, beyond[-1], {**elsewhere(), **own})
        chain += gap
        length = chain[-1].sequence if chain else 0
        beyond = [one for one in beyond if one.sequence > length]
    refs: dict[str, str] = {}
    moved: dict[str, list[str]] = {}
    for operation in (*chain, *beyond):
        for change in operation.changes:
            moved.setdefault(change.ref, []).extend(one for one in (change.before, change.after) if one is not None)
            refs.pop(change.ref, None)
            if change.after is not None:
                refs[change.ref] = change.after
    # A log that is damaged may have lost its last lines; the catalog says whether it did, or the end of the file.
    ends = bool(chain) and data.endswith(chain[-1].encode().partition(b"\n")[2] + b"\n")
    complete = not beyond and bool(chain) and (salvaged.damage is None or bool(recorded) or ends)
    missing = len(chain) > len(salvaged.operations)
    return LogPlan(tuple(chain), refs, moved, complete, salvaged.damage, missing)


def _gap(chain: list[Operation], last: Operation, known: Mapping[OperationId, Operation]) -> list[Operation]:
    """The operations that lead from the end of a chain to a later one; none where one of them is not known."""
    end = operation_id(chain[-1]) if chain else None
    found = [last]
    while found[-1].previous != end:
        before = known.get(found[-1].previous) if found[-1].previous is not None else None
        if before is None or before.sequence != found[-1].sequence - 1:
            return []
        found.append(before)
    return found[::-1]
