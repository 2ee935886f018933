"""Power cuts at every point of recorded commands, on a pessimistic file system (R3): what was acknowledged is there.

Commands are run once under strace; disk_model.py, which says what it promises, replays every call, and disk_cuts.py
makes up what a cut at any point may leave. SQLite's own protocol must come out clean: where it does not, the model is
wrong.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from disk_cuts import POLICIES, left
from disk_model import Disk, Tree
from forked import environment
from memory_folders import trial_folder
from power_checks import check_again, check_content, check_durable, check_opened, check_usable
from power_story import account, prepare, write_sources
from strace_log import Call, record, unavailable
from trials import FULL, Trials

import rblstore
from rblstore.errors import NoRepositoryError
from rblstore.opening import FORMAT

SEEN = "seen before"
DRAWS = 5


@dataclass(frozen=True)
class Recording:
    """A story as it went.

    Attributes:
        root: The folder in which the repository lies, as ``store``.
        sources: What was committed.
        before: What the folder held at the beginning.
        calls: Every call on the folder, and every acknowledgement.
        acknowledged: By the number of calls made until then.
        start: What had been acknowledged at the beginning, if there was a repository.
        fleeting: Paths whose names were not durable at the beginning.
    """

    root: Path
    sources: Path
    before: Tree
    calls: list[Call]
    acknowledged: dict[int, dict[str, Any]]
    start: dict[str, Any] | None
    fleeting: frozenset[str]

    def disk(self) -> Disk:
        """As it was at the beginning."""
        return Disk(self.root, self.before, self.fleeting)


def read_tree(folder: Path) -> Tree:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write_tree(folder: Path, tree: Tree) -> None:
    folder.mkdir()
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder in memory: what is made up is written and read, and need not outlive anything."""
    with trial_folder() as folder:
        yield folder


def recorded(story: str, folder: Path) -> Recording:
    """Records a story, and checks that the model, with nothing cut, says what the file system says."""
    root, sources = folder / "root", write_sources(folder / "sources")
    root.mkdir()
    start = None
    if story != "beginning":
        prepare(root / "store", sources)
        with rblstore.open(root / "store") as repo:
            start = account(repo)
    fleeting: frozenset[str] = frozenset()
    if story == "joining":
        (root / "store" / ".rbl" / "refs.log").unlink()
        durable = read_tree(root)
        for number in range(256):
            (root / "store" / ".rbl" / "packs" / f"{number:02x}").mkdir(exist_ok=True)
        fleeting = frozenset(read_tree(root).keys() - durable.keys())
    recording = Recording(root, sources, read_tree(root), [], {}, start, fleeting)
    script = Path(__file__).with_name("power_story.py")
    calls = record([sys.executable, script, story, root / "store", sources], folder / "strace.log", environment())
    calls = concerning(recording.disk(), calls)
    acknowledged = {
        number: json.loads(call.arguments[1])
        for number, call in enumerate(calls, 1)
        if _is_acknowledgement(call) and isinstance(call.arguments[1], bytes)
    }
    disk = recording.disk()
    for call in calls:
        disk.apply(call)
    assert disk.live() == read_tree(root)
    return replace(recording, calls=calls, acknowledged=acknowledged)


def _is_acknowledgement(call: Call) -> bool:
    return call.name == "write" and call.arguments[0] == 1


def concerning(disk: Disk, calls: list[Call]) -> list[Call]:
    """Those of the calls that have to do with a folder, and the acknowledgements, numbered anew."""
    kept: list[Call] = []
    kept_until = [0]
    for call in calls:
        if disk.apply(call) or _is_acknowledgement(call):
            kept.append(replace(call, began=kept_until[call.began]))
        kept_until.append(len(kept))
    return kept


def cut_points(recording: Recording) -> tuple[list[int], list[int]]:
    """After how many calls something is another than before; and where most is at stake.

    That is before anything becomes durable, and after a name changed.
    """
    disk = recording.disk()
    points, sharp = [0], [0]
    for number, call in enumerate(recording.calls, 1):
        changes = disk.changes
        disk.apply(call)
        if disk.changes == changes and number not in recording.acknowledged:
            continue
        if call.name in ("fsync", "fdatasync"):
            sharp.append(points[-1])
        elif call.name not in ("write", "pwrite64", "ftruncate"):
            sharp.append(number)
        points.append(number)
    return points, sharp


class Cuts:
    """Cuts of one recording.

    Args:
        recording: What is cut.
        room: Where what a cut leaves is written.
    """

    def __init__(self, recording: Recording, room: Path) -> None:
        self._recording = recording
        self._room = room
        self._seen: set[int] = set()
        self.points, self.sharp = cut_points(recording)

    def check(self, point: int, policy: str, moment: Random) -> str:
        """Cuts after so many calls, and checks what is left; returns how it ended, in a word."""
        recording = self._recording
        disk = recording.disk()
        for call in recording.calls[:point]:
            disk.apply(call)
        tree = left(disk, policy, moment)
        known = recording.start
        for number, one in recording.acknowledged.items():
            known = one if number <= point else known
        coming = next((one for number, one in recording.acknowledged.items() if number > point), None)
        key = hash((frozenset(tree.items()), str(known), str(coming)))
        if key in self._seen:
            return SEEN
        self._seen.add(key)
        folder = self._room / "cut"
        write_tree(folder, tree)
        try:
            outcome = self._check(folder / "store", known, coming, moment)
        except BaseException:
            near = "\n".join(f"{n:6} {recording.calls[n - 1]}" for n in self.points if point - 40 < n <= point and n)
            print(f"cut after call {point}, {policy}; the last calls until then:\n{near}")
            raise
        shutil.rmtree(folder)
        return outcome

    def _check(self, store: Path, known: dict[str, Any] | None, coming: dict[str, Any] | None, moment: Random) -> str:
        number = moment.randrange(1 << 30)
        marker = store / ".rbl" / "format"
        if known is None and not (marker.is_file() and marker.read_bytes() == FORMAT):
            with pytest.raises(NoRepositoryError):
                rblstore.open(store)
            rblstore.init(store).close()
            check_usable(store, self._room, number)
            return "no repository"
        if known is not None and (known is not self._recording.start or not self._recording.fleeting):
            check_durable(store, known)
        found = check_opened(store, known, coming)
        if number % 4 == 0 and known is not None and "tag first" in known["refs"]:
            check_content(store, self._recording.sources, "first", self._room)
        before = known is not None and known["operation"] == found
        if before and coming is not None and coming["source"]:
            check_again(store, self._recording.sources, coming["source"], self._room)
        check_usable(store, self._room, number)
        return "before" if before else "after"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("story", "quick"), [("beginning", 60), ("writing", 120), ("maintaining", 60), ("joining", 30), ("collecting", 60)]
)
def test_cuts_of_recorded_commands(story: str, quick: int, tmp_path: Path, room: Path) -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    recording = recorded(story, tmp_path)
    cuts = Cuts(recording, room)
    with Trials("R3", f"simulated power cuts while {story}", quick=quick, full=20 * len(cuts.points)) as run:
        run.count("calls", len(cuts.points))
        run.count("acknowledged", len(recording.acknowledged))
        for number in run:
            likely = (cuts.sharp, list(recording.acknowledged), cuts.points)[number % 3]
            for _ in range(DRAWS):
                point = cuts.points[number % len(cuts.points)] if FULL else run.moment.choice(likely)
                outcome = cuts.check(point, run.moment.choice(POLICIES), run.moment)
                if outcome != SEEN:
                    break
            run.count(outcome)
