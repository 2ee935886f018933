"""A disk that does not give what is stored: the error says that reading failed, and never that something is damaged.

SQLite calls a catalog malformed of which it could not read a page, and rebuilding it would be the wrong advice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint
from forked import PATIENCE_SECONDS, environment

import rblstore


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    done = subprocess.run([found, "-f", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads")
    with rblstore.init(folder / "store") as repo:
        repo.commit("one", identity=write_checkpoint(folder / "model", 40_000, 1))
    return folder / "store"


@pytest.mark.parametrize(
    ("name", "call", "first", "code"),
    [
        ("format", "read", 1, "read_failed"),
        ("format", "openat", 1, "read_failed"),
        ("config.toml", "read", 1, "read_failed"),
        ("catalog.db", "pread64", 1, "catalog_failed"),  # the header
        ("catalog.db", "pread64", 4, "catalog_failed"),  # a page, of which SQLite says that it is malformed
        ("refs.log", "pread64", 1, "read_failed"),
    ],
)
def test_a_disk_that_does_not_give_what_is_stored(
    name: str, call: str, first: int, code: str, strace: str, store: Path
) -> None:
    path = store / ".rbl" / name
    fails = ["-P", str(path), "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={first}+"]
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", os.devnull, *fails, sys.executable, "-m", "rblstore", "-C", store, "log", "--json"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, code), done.stderr
    assert "the disk" in done.stderr
    assert "damaged" not in done.stderr
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).ok
