"""What a power cut may leave of a folder, by the rules of :mod:`disk_model`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from disk_model import Change, Disk, Edit, File, Folder, Node, Tree, set_name, walk

POLICIES: Final = ("nothing", "everything", "prefix", "names", "unnamed", "some", "some", "some")
BLOCK: Final = 4096
SECTOR: Final = 512


def left(disk: Disk, policy: str, moment: random.Random) -> Tree:
    """What a cut leaves.

    Args:
        disk: What was done until then.
        policy: ``nothing`` that is not durable, ``everything``, ``prefix`` (everything up to a moment), ``names``
            (all of them, and sizes, but no data), ``unnamed`` (all data, but no names) or ``some`` of everything.
        moment: What chance decides with.
    """
    likely = moment.choice((0.05, 0.5, 0.95))
    until = moment.randint(0, disk.at)
    block = moment.choice((BLOCK, SECTOR))

    def take(at: int, *, name: bool) -> bool:
        if policy == "some":
            return moment.random() < likely
        if policy == "prefix":
            return at <= until
        return policy == "everything" or policy == ("names" if name else "unnamed")

    names = _names(disk, take)
    contents: dict[int, bytes] = {}

    def content(file: File) -> bytes:
        if id(file) not in contents:
            if policy == "names":
                contents[id(file)] = _blank(file)
            elif policy == "some":
                contents[id(file)] = _mixed(file, block, take)
            else:
                contents[id(file)] = _until(file, lambda edit: take(edit.at, name=False))
        return contents[id(file)]

    return dict(walk(disk.top, "", lambda folder: names[id(folder)], content))


def _reachable(disk: Disk) -> Iterator[Node]:
    """Every file and folder that has, had or will have a name."""
    seen: set[int] = set()
    waiting: list[Node] = [disk.top]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, Folder):
            waiting += [
                *node.durable.values(),
                *(change.node for change in node.pending if change.node is not None),
            ]


def _names(disk: Disk, take: Callable[..., bool]) -> dict[int, dict[str, Node]]:
    """Names of each folder after some of the changes: of one name the first few, of a rename the new name first."""
    folders = [node for node in _reachable(disk) if isinstance(node, Folder)]
    taken: set[Change] = set()
    for folder in folders:
        stopped: set[str] = set()
        for change in folder.pending:
            if change.name not in stopped and take(change.at, name=True):
                taken.add(change)
            else:
                stopped.add(change.name)
    waiting = list(taken)
    while waiting:
        change = waiting.pop()
        if change.after is None:
            continue
        other, first = change.after
        for one in other.pending:
            if one.name == first.name and one.at <= first.at and one not in taken and first in other.pending:
                taken.add(one)
                waiting.append(one)
    found = {}
    for folder in folders:
        names = found[id(folder)] = dict(folder.durable)
        for change in folder.pending:
            if change in taken:
                set_name(names, change)
    return found


def _until(file: File, covered: Callable[[Edit], bool]) -> bytes:
    content = bytearray(file.durable)
    for edit in file.pending:
        if not covered(edit):
            break
        edit.apply(content)
    return bytes(content)


def _blank(file: File) -> bytes:
    """As long as it is now, and of what was written since it was durable, nothing."""
    return file.durable[: len(file.live)].ljust(len(file.live), b"\0")


def _mixed(file: File, block: int, take: Callable[..., bool]) -> bytes:
    """Each block, and the size, as it was after some of the edits."""
    versions = [bytearray(file.durable)]
    for edit in file.pending:
        versions.append(bytearray(versions[-1]))
        edit.apply(versions[-1])
    size = len(versions[_some(file.pending, take)])
    parts = []
    for start in range(0, size, block):
        touching = [number for number, edit in enumerate(file.pending, 1) if edit.touches(start, start + block)]
        chosen = _some([file.pending[number - 1] for number in touching], take)
        version = versions[touching[chosen - 1]] if chosen else versions[0]
        parts.append(bytes(version[start : start + block]).ljust(block, b"\0"))
    return b"".join(parts)[:size]


def _some(edits: list[Edit], take: Callable[..., bool]) -> int:
    """How many of them there are, from the first on; each that lies further on takes another stroke of luck."""
    number = 0
    for edit in edits:
        if not take(edit.at, name=False):
            break
        number += 1
    return number
