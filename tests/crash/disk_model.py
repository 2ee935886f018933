"""What a power cut may leave of a folder, given every call that was made on it: a pessimistic file system.

The model promises what POSIX and every journaling file system promise, and no more:

* **Data.** What was written to a file, and its size, are durable once fsync or fdatasync of that file has returned. Of
  what was written after the last one, any subset of blocks may be there, each as it was after any of the writes to it;
  the size may be that after any of them, independently; what the size covers and nothing wrote is zeros.
* **Names.** That a name was made, removed, or given to another file is durable once fsync of its folder has returned:
  of the folder, not of the file. Of the changes since, any subset may be there, where those of one name keep their
  order. A file that is durable under no durable name is lost; so is all that lies in a folder without one.
* **Renames.** A name that is given to another file stands for the one or the other at any time. The old name does not
  go before the new one is there: after a cut there may be both, in two folders or one, but never none.
* Calls that failed did nothing. An fsync covers what had returned when it began.

Modes, owners and times are not modelled. What the model does not know, and may matter, is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from strace_log import Call

Tree: TypeAlias = dict[str, "bytes | None"]
"""Contents of files by their paths; None for a folder."""


@dataclass(eq=False)
class File:
    """A file: what is durable, and what was done to it since."""

    durable: bytes = b""
    pending: list[Edit] = field(default_factory=list)
    live: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class Folder:
    """A folder: the names that are durable, and what was done to them since."""

    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    live: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = "File | Folder"


@dataclass(frozen=True)
class Edit:
    """Bytes written at an offset, or (None) a file cut or made longer there."""

    at: int
    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
        end = self.offset + len(self.data or b"")
        content.extend(bytes(max(0, end - len(content))))
        if self.data is not None:
            content[self.offset : end] = self.data

    def touches(self, start: int, end: int) -> bool:
        """Whether it changes a block that begins and ends there."""
        return self.offset < end if self.data is None else self.offset < end and self.offset + len(self.data) > start


@dataclass(frozen=True, eq=False)
class Change:
    """A name that stands for a file or folder from now on, or (None) for nothing.

    ``after`` is another change, with its folder, that cannot be lost where this one is not.
    """

    at: int
    name: str
    node: Node | None
    after: tuple[Folder, Change] | None = None


@dataclass
class _Descriptor:
    node: Node
    appends: bool
    offset: int = 0


class Disk:
    """A folder on the model's file system.

    Args:
        root: The folder's path at the time of the recording.
        tree: What it held at the beginning.
        fleeting: Those of its paths whose names were not durable; all else was.

    Attributes:
        top: The folder itself.
        at: How many calls there were.
        changes: How many calls changed what it holds, or what of it is durable.
    """

    def __init__(self, root: Path, tree: Mapping[str, bytes | None], fleeting: Collection[str] = ()) -> None:
        self._root = os.fsencode(root) + b"/"
        self.top = Folder()
        self._descriptors: dict[int, _Descriptor] = {}
        self.at = 0
        self.changes = 0
        for path, content in sorted(tree.items()):
            folder, name = self._find(os.fsencode(path))
            node = Folder() if content is None else File(content, [], bytearray(content))
            if path in fleeting:
                self._change(folder, name, node, None)
            else:
                folder.durable[name] = folder.live[name] = node

    # -- what happens ---------------------------------------------------------------------------------------------

    def apply(self, call: Call) -> bool:
        """Does what a call did; returns whether it had anything to do with the folder."""
        self.at += 1
        does: Callable[[Call], bool] | None = getattr(self, f"_do_{call.name}", None)
        if does is not None:
            concerned = self._concerns(call)
            self.changes += does(call)
            return concerned or self._concerns(call)
        if call.name in ("fork", "vfork", "clone", "clone3"):
            assert "CLONE_FILES" in str(call.arguments), "a process that has children cannot be followed"
            return False
        assert not self._concerns(call), f"the model does not know {call}"
        return False

    def _concerns(self, call: Call) -> bool:
        numbers = [argument for argument in (call.result, *call.arguments[:3]) if isinstance(argument, int)]
        paths = [argument for argument in call.arguments if isinstance(argument, bytes)]
        return any(number in self._descriptors for number in numbers) or any(map(self._is_ours, paths))

    def _is_ours(self, path: bytes) -> bool:
        return (os.path.normpath(path) + b"/").startswith(self._root)

    def _find(self, path: bytes) -> tuple[Folder, str]:
        *above, name = os.fsdecode(path).split("/")
        folder = self.top
        for part in above:
            node = folder.live[part]
            assert isinstance(node, Folder)
            folder = node
        return folder, name

    def _place(self, call: Call, number: int) -> tuple[Folder, str] | None:
        """The folder and name that a call's argument names; None outside of what is modelled."""
        path = call.arguments[number]
        assert isinstance(path, bytes), str(call)
        below = call.arguments[number - 1] if number else "AT_FDCWD"
        if not path.startswith(b"/") and isinstance(below, int):
            assert below not in self._descriptors, f"the model does not know {call}"
            return None
        path = os.path.normpath(path if path.startswith(b"/") else b"/" + path)
        return self._find(path[len(self._root) :]) if path.startswith(self._root) else None

    def _change(self, folder: Folder, name: str, node: Node | None, after: tuple[Folder, Change] | None) -> Change:
        change = Change(self.at, name, node, after)
        folder.pending.append(change)
        if node is None:
            del folder.live[name]
        else:
            folder.live[name] = node
        return change

    def _edit(self, file: Node, offset: int, data: bytes | None) -> None:
        assert isinstance(file, File)
        edit = Edit(self.at, offset, data)
        file.pending.append(edit)
        edit.apply(file.live)

    def _do_openat(self, call: Call) -> bool:
        return self._open(call, 1, str(call.arguments[2]))

    def _do_open(self, call: Call) -> bool:
        return self._open(call, 0, str(call.arguments[1]))

    def _do_creat(self, call: Call) -> bool:
        return self._open(call, 0, "O_WRONLY|O_CREAT|O_TRUNC")

    def _open(self, call: Call, number: int, words: str) -> bool:
        flags = words.split("|")
        path = call.arguments[number]
        assert isinstance(path, bytes)
        if os.path.normpath(path) + b"/" == self._root:
            self._descriptors[call.result] = _Descriptor(self.top, False)
            return False
        place = self._place(call, number)
        if place is None:
            self._descriptors.pop(call.result, None)
            return False
        folder, name = place
        made = name not in folder.live
        if made:
            assert "O_CREAT" in flags, str(call)
            self._change(folder, name, File(), None)
        node = folder.live[name]
        cut = "O_TRUNC" in flags and isinstance(node, File) and len(node.live) > 0
        if cut:
            self._edit(node, 0, None)
        self._descriptors[call.result] = _Descriptor(node, "O_APPEND" in flags)
        return made or cut

    def _opened(self, call: Call) -> _Descriptor | None:
        number = call.arguments[0]
        assert isinstance(number, int)
        return self._descriptors.get(number)

    def _do_close(self, call: Call) -> bool:
        number = call.arguments[0]
        assert isinstance(number, int)
        self._descriptors.pop(number, None)
        return False

    def _do_dup(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None:
            self._descriptors.pop(call.result, None)
        else:
            self._descriptors[call.result] = opened
        return False

    _do_dup2 = _do_dup3 = _do_dup

    def _do_fcntl(self, call: Call) -> bool:
        return self._do_dup(call) if str(call.arguments[1]).startswith("F_DUPFD") else False

    def _do_lseek(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is not None:
            opened.offset = call.result
        return False

    def _do_write(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None:
            return False
        assert isinstance(opened.node, File)
        data = call.arguments[1]
        assert isinstance(data, bytes)
        offset = len(opened.node.live) if opened.appends else opened.offset
        self._edit(opened.node, offset, data[: call.result])
        opened.offset = offset + call.result
        return True

    def _do_pwrite64(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None:
            return False
        _, data, _, offset = call.arguments
        assert isinstance(data, bytes)
        assert isinstance(offset, int)
        self._edit(opened.node, offset, data[: call.result])
        return True

    def _do_ftruncate(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None:
            return False
        size = call.arguments[1]
        assert isinstance(size, int)
        self._edit(opened.node, size, None)
        return True

    def _do_fsync(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None:
            return False
        if isinstance(opened.node, File):
            self._sync_file(opened.node, call.began)
        else:
            self._sync_folder(opened.node, lambda change: change.at <= call.began)
        return True

    _do_fdatasync = _do_fsync

    @staticmethod
    def _sync_file(file: File, until: int) -> None:
        content = bytearray(file.durable)
        for edit in file.pending:
            if edit.at <= until:
                edit.apply(content)
        file.durable = bytes(content)
        file.pending = [edit for edit in file.pending if edit.at > until]

    def _sync_folder(self, folder: Folder, covered: Callable[[Change], bool]) -> None:
        done = [change for change in folder.pending if covered(change)]
        folder.pending = [change for change in folder.pending if not covered(change)]
        for change in done:
            set_name(folder.durable, change)
            if change.after is not None:
                other, first = change.after
                if first in other.pending:
                    self._sync_folder(other, lambda one, first=first: one.name == first.name and one.at <= first.at)  # type: ignore[misc]

    def _do_mkdir(self, call: Call, number: int = 0) -> bool:
        place = self._place(call, number)
        if place is None:
            return False
        self._change(*place, Folder(), None)
        return True

    def _do_mkdirat(self, call: Call) -> bool:
        return self._do_mkdir(call, 1)

    def _do_unlink(self, call: Call, number: int = 0) -> bool:
        place = self._place(call, number)
        if place is None:
            return False
        self._change(*place, None, None)
        return True

    _do_rmdir = _do_unlink

    def _do_unlinkat(self, call: Call) -> bool:
        return self._do_unlink(call, 1)

    def _do_rename(self, call: Call, old: int = 0, new: int = 1) -> bool:
        source, target = self._place(call, old), self._place(call, new)
        if source is None and target is None:
            return False
        assert source is not None, str(call)
        assert target is not None, str(call)
        node = source[0].live[source[1]]
        if target[0].live.get(target[1]) is not node:
            change = self._change(*target, node, None)
            self._change(*source, None, (target[0], change))
        return True

    def _do_renameat(self, call: Call) -> bool:
        return self._do_rename(call, 1, 3)

    def _do_renameat2(self, call: Call) -> bool:
        assert call.arguments[4] in (0, "RENAME_NOREPLACE"), str(call)
        return self._do_rename(call, 1, 3)

    def _do_link(self, call: Call, old: int = 0, new: int = 1) -> bool:
        source, target = self._place(call, old), self._place(call, new)
        if target is None:
            return False
        assert source is not None, str(call)
        self._change(*target, source[0].live[source[1]], None)
        return True

    def _do_linkat(self, call: Call) -> bool:
        return self._do_link(call, 1, 3)

    def _do_sync_file_range(self, call: Call) -> bool:
        return False

    def live(self) -> Tree:
        """What the folder holds while nothing is cut."""
        return dict(walk(self.top, "", lambda folder: folder.live, lambda file: bytes(file.live)))


def set_name(names: dict[str, Node], change: Change) -> None:
    """Changes what a name stands for."""
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


def walk(
    folder: Folder, above: str, names: Callable[[Folder], dict[str, Node]], content: Callable[[File], bytes]
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in sorted(names(folder).items()):
        if isinstance(node, File):
            yield above + name, content(node)
        else:
            yield above + name, None
            yield from walk(node, f"{above}{name}/", names, content)
