"""Many processes and threads at once: nothing acknowledged is lost, nothing is done that was not acknowledged.

The operation log is the judge: every acknowledged operation is in it once, every change follows from the one before,
and every branch is what its operations say. Whoever loses a race is told so, by an error of its own and no other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny
from many_writers import CONTESTED, SHARED
from trials import FULL, SEED, Trials

import rblstore
from rblstore.errors import LockedError
from rblstore.storage import locks

PATIENCE_SECONDS = 3600 if FULL else 300
PROCESSES, OPERATIONS, READERS = (8, 200, 4) if FULL else (4, 50, 1)


def storm(store: Path, folder: Path, run: Trials) -> list[dict[str, Any]]:
    """Lets the processes loose, and returns what each thread reports."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(Path(rblstore.__file__).parent.parent)])
    arguments = [store, folder, PROCESSES, run.wanted, READERS, 1 if FULL else 0, SEED]
    process = subprocess.Popen(
        [sys.executable, str(here / "many_writers.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        pytest.fail("the processes wait for one another")
    assert (process.returncode, errors) == (0, "")
    return [one for path in sorted(folder.glob("*.json")) for one in json.loads(path.read_text())]


@pytest.mark.slow
def test_many_processes_and_threads_write_at_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Trials("R6", "operations of many processes", quick=4 * 50, full=8 * 200) as run:
        reports = storm(store, tmp_path, run)
        problems = "\n".join(f"{one['name']}:\n{one['problem']}" for one in reports if one["problem"])
        assert not problems, problems
        for report in reports:
            for name, number in report["counts"].items():
                run.count(name, number)
        writers = [one for one in reports if one["name"].startswith("w")]
        with rblstore.open(store) as repo:
            check_operations(repo, [one for report in writers for one in report["acknowledged"]])
            check_branches(repo, writers)
            assert repo.fsck(full=True).damages == ()
            for report in writers:
                target = tmp_path / f"out-{report['name']}"
                repo.checkout(report["name"], target)
                assert tiny.checked_out(target) == report["digests"]
        run.done = run.wanted


def check_operations(repo: Any, acknowledged: list[dict[str, Any]]) -> None:
    """Every acknowledged operation is in the log once, no other is, and each follows from the one before."""
    operations = repo._store.log.read().operations  # which checks the chain
    with repo._store.catalog.read() as reader:
        assert reader.operations() == list(reversed(operations)), "the catalog and refs.log differ"
        refs = reader.refs()
    assert [one.sequence for one in operations] == list(range(1, len(operations) + 1))
    state: dict[str, str | None] = {}
    for one in operations:
        for change in one.changes:
            assert state.get(change.ref) == change.before, f"operation {one.sequence} lost an update of {change.ref}"
            state[change.ref] = change.after
    assert {ref: value for ref, value in state.items() if value is not None} == refs
    logged = Counter((one.author, one.description) for one in operations if one.author.startswith("w"))
    told = Counter((one["author"], one["description"]) for one in acknowledged)
    assert {what: n for what, n in logged.items() if not what[0].endswith("switches")} == told
    contested = Counter(one["tag"] for one in acknowledged if "tag" in one)
    assert set(contested.values()) <= {1}, "two were told that they made one tag"


def check_branches(repo: Any, writers: list[dict[str, Any]]) -> None:
    """Every branch has exactly the commits that were acknowledged, in order."""
    operations = list(reversed(repo.operations()))
    for report in writers:
        assert [one.commit for one in repo.log(report["name"])] == report["history"][::-1]
    of: dict[str, dict[str, Any]] = {
        one["description"]: one for report in writers for one in report["acknowledged"] if "commit" in one
    }
    for branch in (SHARED, CONTESTED):
        standing = [repo.log(branch)[-1].commit]
        for one in operations:
            made = of.get(one.description)
            if made is not None and made["branch"] == branch:
                assert made["parent"] == standing[-1], "a commit does not stand on the one before"
                standing.append(made["commit"])
            elif one.undoes is not None and any(change.ref == f"refs/heads/{branch}" for change in one.changes):
                standing.pop()
        assert [one.commit for one in repo.log(branch)] == standing[::-1]


def importing(store: Path, source: Path, ready: int, go: int) -> None:
    """A process that stops in the middle of an import, its transaction open, until it hears that it may go on."""
    told = False

    def stop(_: Any) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(ready, b"i")
            os.read(go, 1)

    with rblstore.open(store) as repo:
        repo.commit("import", identity=source, branch="import", progress=stop)
    os.write(ready, b"d")


def test_nobody_waits_for_a_long_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the order of things: while one process imports, others read, check and write to the end."""
    store, source = tmp_path / "store", tiny.write_base(tmp_path / "large", seed=3)
    base, adapter = tiny.write_base(tmp_path / "base"), tiny.write_adapter(tmp_path / "adapter")
    with rblstore.init(store) as repo:
        repo.commit("base", identity=base)
    ready, ready_end = os.pipe()
    go, go_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go_end)
            importing(store, source, ready_end, go)
        finally:
            os._exit(0)
    os.close(ready_end)
    assert os.read(ready, 1) == b"i", "the import ended before it began"
    try:
        signal.alarm(PATIENCE_SECONDS)  # whoever waits for the import waits for ever
        with rblstore.open(store) as repo:
            assert [one.message for one in repo.log(all=True)] == ["base"]
            repo.checkout("main", tmp_path / "out")
            assert tiny.checked_out(tmp_path / "out") == tiny.digests(base)
            assert repo.status().branch == "main"
            assert repo.fsck(full=True).damages == ()
            assert not repo.gc().changed
            repo.commit("beside", behaviors={"x": adapter})
            repo.create_tag("beside")
            monkeypatch.setattr(locks, "MAINTENANCE_WAIT_SECONDS", 0.0)
            for maintenance in (lambda: repo.gc(apply=True), repo.repack):
                with pytest.raises(LockedError):
                    maintenance()
            assert select.select([ready], [], [], 0)[0] == [], "the import ended meanwhile"
            assert "import" not in [branch.name for branch in repo.branches()]
            os.write(go_end, b"g")
            assert os.read(ready, 1) == b"d", "the import failed"
            repo.checkout("import", tmp_path / "imported")
            assert tiny.checked_out(tmp_path / "imported") == tiny.digests(source)
            latest = [one.description for one in repo.operations(3)]
            assert latest == ["commit: import", "tag: beside", "commit: beside"]
            repo.gc(apply=True)
            assert repo.fsck(full=True).damages == ()
    finally:
        signal.alarm(0)
        os.close(go_end)
        os.close(ready)
        os.waitpid(child, 0)
        os.close(go)
