"""R12: the suite can fail. Small faults are planted in a copy of the project, one at a time; a test goes red for each.

The quick tier plants ten, drawn by a seed that it prints; ``RBL_TEST_TIER=full`` plants all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from faults import FAULTS, Fault
from trials import Trials

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300
FAILED = 1  # of pytest's exit codes: tests ran, and some failed


def names() -> list[str]:
    return [fault.name for fault in FAULTS]


def copy(folder: Path) -> Path:
    """The project as far as tests need it."""
    folder.mkdir()
    for name in ("rblstore", "tests", "migrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run(project: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Runs tests of a copy, against that copy's package; returns pytest's exit code and the end of what it said."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RBL_TEST_"))},
        "PYTHONPATH": str(project),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RBL_TEST_SEED": "1",  # a fault is noticed every time, or it is not noticed
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        check=False,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_SECONDS,
    )
    return done.returncode, done.stdout.decode(errors="replace")[-3000:]


@pytest.mark.parametrize("fault", FAULTS, ids=names())
def test_a_fault_can_still_be_planted(fault: Fault) -> None:
    assert (ROOT / "rblstore" / fault.file).read_text().count(fault.before) == 1
    assert fault.before != fault.after
    for test in fault.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).is_file()


def test_no_fault_has_two_names() -> None:
    assert len(set(names())) == len(FAULTS)


@pytest.mark.slow
def test_every_fault_is_noticed(tmp_path: Path) -> None:
    with Trials("R12", "planted faults", quick=10, full=len(FAULTS)) as trials:
        planted = trials.moment.sample(FAULTS, min(trials.wanted, len(FAULTS)))
        project = copy(tmp_path / "project")
        unnoticed = []
        for number in trials:
            fault = planted[number % len(planted)]
            file = project / "rblstore" / fault.file
            whole = file.read_text()
            file.write_text(whole.replace(fault.before, fault.after))
            code, said = run(project, fault.tests)
            file.write_text(whole)
            if code != FAILED:
                unnoticed.append(f"{fault.name}: pytest exited {code}\n{said}")
        trials.count("not noticed", len(unnoticed))
        assert not unnoticed, "\n\n".join(unnoticed)
        # The same tests pass where nothing is planted: what went red went red for the fault.
        code, said = run(project, sorted({test for fault in planted for test in fault.tests}))
        assert code == 0, said
