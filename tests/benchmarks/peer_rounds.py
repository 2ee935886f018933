"""One round of one tool: every step timed from outside, in a fresh folder; what comes back is compared."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from measuring import ProcessFailedError, Run, run
from peer_tools import ADAPTER, BASE, FINE_TUNE, MERGED, STEPS, TOUCHED, TREES, Action, Peer, commit_of, restore_of

# Steps after which the store is weighed.
WEIGHED = {commit_of(BASE): BASE, commit_of(FINE_TUNE): FINE_TUNE, commit_of(ADAPTER): ADAPTER, TOUCHED: TOUCHED}
# What a checkout of ours holds besides the files that were committed.
OURS = ("rbl-composition.json", "behaviors")
# How many input trees one round holds at once: its own, its store, what it restored.
COPIES_ON_DISK = 5
TOUCHED_ELEMENTS = 4


@dataclass
class Round:
    """What one round of one tool took.

    Attributes:
        runs: By step, those that went well.
        stores: Bytes of the store, by what had been committed last.
        failures: By step, why it could not be measured.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    stores: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def tree_bytes(folder: Path) -> int:
    """Bytes of all files under a folder, those with several names once."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if path.is_file() and not path.is_symlink():
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def read_through(folder: Path) -> None:
    """Reads every file, so that it lies in the page cache."""
    block = bytearray(1 << 20)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as stream:
                while stream.readinto(block):
                    pass


def touch(tree: Path) -> str:
    """Changes a few bytes of one tensor in place: the lowest bit of four elements. Returns the tensor's name.

    A tensor in the middle of the first safetensors file, by its place in the file, with at least eight elements.
    """
    path = min(tree.rglob("*.safetensors"))
    with path.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        large = [name for name, entry in header.items() if _elements(entry) >= 2 * TOUCHED_ELEMENTS]
        if not large:
            raise SystemExit(f"{path.name} has no tensor large enough to touch")
        name: str = sorted(large, key=lambda one: header[one]["data_offsets"])[len(large) // 2]
        begin, end = header[name]["data_offsets"]
        width = (end - begin) // _elements(header[name])
        middle = 8 + length + begin + width * (_elements(header[name]) // 2)
        stream.seek(middle)
        values = bytearray(stream.read(TOUCHED_ELEMENTS * width))
        for at in range(0, len(values), width):
            values[at] ^= 1
        stream.seek(middle)
        stream.write(values)
    return name


def _elements(entry: Mapping[str, Sequence[int]]) -> int:
    count = 1
    for length in entry["shape"]:
        count *= length
    return count


def settle(sources: Mapping[str, Path], folder: Path) -> None:
    """Brings the machine into the state in which every step begins, whichever came before.

    The largest tree is copied and the copy deleted, so that the memory which the next step's files will take has been
    taken before: where a virtual machine's host gives memory when it is first used and takes back what is free, whoever
    comes first after a pause pays for that, more than for the work itself. Then what is still to be written is written.
    """
    largest = max(sources.values(), key=tree_bytes)
    shutil.copytree(largest, folder / "settling")
    shutil.rmtree(folder / "settling")
    os.sync()


def differences(original: Path, restored: Path) -> list[str]:
    """Relative paths of files that are not byte for byte the same in both; what a checkout of ours adds is left out."""
    if not restored.is_dir():
        return ["(nothing came back)"]
    before = {path.relative_to(original) for path in original.rglob("*") if path.is_file()}
    after = {path.relative_to(restored) for path in restored.rglob("*") if path.is_file()}
    changed = {path for path in before & after if not filecmp.cmp(original / path, restored / path, shallow=False)}
    changed |= before - after
    changed |= {path for path in after - before if path.parts[0] not in OURS}
    return sorted(str(path) for path in changed)


def one_round(
    peer: Peer,
    sources: Mapping[str, Path],
    work: Path,
    variables: Mapping[str, str],
    steps: Sequence[str] = STEPS,
    *,
    linked: bool = False,
) -> Round:
    """Every step of a tool, in a folder that is gone afterwards.

    Args:
        peer: The tool.
        sources: The trees to commit, by name; steps of others are left out.
        work: Where the folder is made.
        variables: The environment.
        steps: Which ones, in order.
        linked: Whether the trees are hard links to the inputs, for steps that change none of them: large ones then take
            their place in the page cache once.
    """
    result = Round()
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-", dir=work) as name:
        folder = Path(name)
        for tree, source in sources.items():
            shutil.copytree(source, folder / tree, copy_function=os.link if linked else shutil.copy2)
        wanted = [step for step in steps if step in peer.actions and _tree_of(step) in sources]
        try:
            for line in peer.prepare:
                run(["sh", "-c", line], folder, variables)
        except ProcessFailedError as error:
            result.failures = dict.fromkeys(wanted, _told(peer, "prepare", error, work))
            return result
        for step in wanted:
            if step not in map(commit_of, TREES) and commit_of(_tree_of(step)) in result.failures:
                result.failures[step] = f"{_tree_of(step)} was not committed"
                continue
            try:
                result.runs[step] = _one_step(peer.actions[step], step, sources, folder, variables)
            except ProcessFailedError as error:
                result.failures[step] = _told(peer, step, error, work)
            if step in WEIGHED and step not in result.failures:
                result.stores[WEIGHED[step]] = tree_bytes(folder / peer.store)
    return result


def _one_step(
    action: Action, step: str, sources: Mapping[str, Path], folder: Path, variables: Mapping[str, str]
) -> Run:
    for line in action.before:
        run(["sh", "-c", line], folder, variables)
    if step == TOUCHED:
        touch(folder / BASE)
    settle(sources, folder)
    taken = run(["sh", "-c", action.line], folder, variables)
    for line in action.after:
        run(["sh", "-c", line], folder, variables)
    if action.restored is not None:
        changed = differences(sources[_tree_of(step)], folder / action.restored)
        if changed:
            raise ProcessFailedError(f"what came back differs: {', '.join(changed[:5])}")
        # The next step starts with as much page cache as this one had.
        if not (folder / action.restored).samefile(folder / _tree_of(step)):
            shutil.rmtree(folder / action.restored)
    return taken


def _tree_of(step: str) -> str:
    """The tree that a step commits or restores."""
    if step == MERGED:
        return ADAPTER
    return next((tree for tree in TREES if step in (commit_of(tree), restore_of(tree))), BASE)


def _told(peer: Peer, step: str, error: ProcessFailedError, work: Path) -> str:
    """Says loudly on stderr what failed, and returns it without the paths of this machine."""
    said = str(error).replace(str(work), "WORK")
    print(f"!!! {peer.title}: {step}: {said}", file=sys.stderr, flush=True)
    first, *rest = said.splitlines()
    return f"{first} {rest[-1].strip()}"[:500] if rest else first[:500]
