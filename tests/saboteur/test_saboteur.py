"""R12: the suite can fail. Small faults are planted in a copy of the project, one at a time; a test goes red for each.

The quick tier plants ten, drawn by a seed that it prints; ``RBL_TEST_TIER=full`` plants all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault import Fault
from faults import FAULTS
from trials import FULL, Trials

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300
MOST_TRIALS = 150
TRACED = (
    "crash/test_failing_calls.py",
    "crash/test_kill_calls.py",
    "crash/test_kill_random.py",
    "crash/test_power_simulated.py",
)
OWNED = ("hostile/test_foreign_owner.py",)
FAILED = 1  # of pytest's exit codes: tests ran, and some failed


def names() -> list[str]:
    return [fault.name for fault in FAULTS]


def copy(folder: Path) -> Path:
    """The project as far as tests need it."""
    folder.mkdir()
    for name in ("rblstore", "tests", "migrations", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(project: Path, fault: Fault) -> tuple[int, str]:
    """Runs a fault's tests in a copy, against that copy's package; pytest's exit code and the end of what it said."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RBL_TEST_"))},
        "PYTHONPATH": str(project),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RBL_TEST_SEED": "1",  # a fault is noticed every time, or it is not noticed
        "RBL_TEST_TRIALS": str(MOST_TRIALS),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, f"tests/{fault.tests}", "-k", fault.select],
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
    assert (ROOT / "tests" / fault.tests).is_file()


def test_no_fault_has_two_names() -> None:
    assert len(set(names())) == len(FAULTS)


def skipped(fault: Fault) -> bool:
    """Whether the tests that notice it cannot run here."""
    return (fault.tests in TRACED and shutil.which("strace") is None) or (fault.tests in OWNED and os.geteuid() != 0)


@pytest.mark.slow
def test_every_fault_is_noticed(tmp_path: Path) -> None:
    possible = [fault for fault in FAULTS if not skipped(fault)]
    with Trials("R12", "planted faults", quick=10, full=len(possible)) as trials:
        planted = trials.moment.sample(possible, min(trials.wanted, len(possible)))
        project = copy(tmp_path / "project")
        wrong = []
        for number in trials:
            fault = planted[number % len(planted)]
            file = project / "rblstore" / fault.file
            whole = file.read_text()
            file.write_text(whole.replace(fault.before, fault.after))
            code, said = run(project, fault)
            file.write_text(whole)
            if code != FAILED:
                wrong.append(f"{fault.name}: pytest exited {code}\n{said}")
            elif FULL:  # in the quick tier the rest of the suite says that they pass where nothing is planted
                code, said = run(project, fault)
                if code != 0:
                    wrong.append(f"{fault.name}: its tests fail without it\n{said}")
            print(f"{fault.name}: {'noticed' if len(wrong) == 0 else f'{len(wrong)} so far not'}", flush=True)
        trials.count("not noticed", len(wrong))
        assert not wrong, "\n\n".join(wrong)
