"""How long ``rbl log -n 20`` and ``rbl status`` take in a long history, above the start of the interpreter and imports.

    python tests/benchmarks/many_commits.py --json many_commits.json
    python tests/benchmarks/many_commits.py --full

The history is made in bulk: 10,000 commits, or with ``--full`` 50,000 and 100,000 contents besides. The start that is
taken off is that of a process that imports every module that the command does, and does nothing. Peak memory of an
import of 8 GiB is in ``scale.py``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from measuring import RBL, environment, find_rblstore, report, run, summary

LOG_SECONDS, STATUS_SECONDS = 0.1, 1.0
COMMANDS = {"log": ("log", "-n", "20"), "status": ("status",)}

_MODULES = """
import contextlib, io, sys
from rblstore.cli.main import main
before = sys.stdout
sys.argv = ["rbl", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
ours = (name for name in sys.modules if name.split(".")[0] in ("click", "rblstore", "sqlalchemy"))
print(",".join(name for name in ours if name != "rblstore.__main__"), file=before)
"""
# What the program does before it begins (rblstore/cli/main.py).
_BEGIN = "import atexit, gc; gc.set_threshold(50_000); atexit.register(gc.freeze)"


def modules_of(command: Sequence[str], store: Path, variables: Mapping[str, str]) -> str:
    """What a command imports of our own and of what costs time, as an import statement."""
    said = subprocess.run(
        [sys.executable, "-c", _MODULES, *command],
        cwd=store,
        env=dict(variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return f"{_BEGIN}; import {said.stdout.strip().splitlines()[-1]}"


def make(folder: Path, commits: int, contents: int) -> Path:
    """A repository of so many commits; returns its directory."""
    # In a process of its own: a measured one begins with the peak memory of whoever starts it.
    making = multiprocessing.get_context("spawn").Process(target=_make, args=(folder, commits, contents))
    making.start()
    making.join()
    if making.exitcode:
        raise SystemExit("the history could not be made")
    return folder / "store"


def _make(folder: Path, commits: int, contents: int) -> None:
    find_rblstore()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from long_history import make_history

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    make_history(folder, commits=commits, contents=contents, said=say).close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--commits", type=int, metavar="N", help="how many (10,000; with --full 50,000)")
    parser.add_argument("--contents", type=int, metavar="N", help="how many besides (none; with --full 100,000)")
    parser.add_argument("--full", action="store_true", help="the figures of docs/reliability.md")
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="rounds; medians are over these (9)")
    parser.add_argument("--fsck", action="store_true", help="measure rbl fsck, too, once")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    commits = options.commits or (50_000 if options.full else 10_000)
    contents = options.contents if options.contents is not None else (100_000 if options.full else 0)
    with tempfile.TemporaryDirectory(prefix="rbl-commits-", dir=options.folder) as name:
        folder = Path(name)
        variables = environment(folder / "compiled")
        store = make(folder, commits, contents)
        processes = {}
        for verb, command in COMMANDS.items():
            processes[f"start of {verb}"] = [sys.executable, "-c", modules_of(command, store, variables)]
            processes[verb] = [*RBL, *command]
        for command in processes.values():
            run(command, store, variables)
        rounds = [
            {name: run(command, store, variables) for name, command in processes.items()} for _ in range(options.runs)
        ]
        rows = []
        for verb, target in (("log", LOG_SECONDS), ("status", STATUS_SECONDS)):
            added = [one[verb].wall - one[f"start of {verb}"].wall for one in rounds]
            cpu = [one[verb].cpu - one[f"start of {verb}"].cpu for one in rounds]
            rows.append({
                "process": f"rbl {' '.join(COMMANDS[verb])}",
                **summary(one[verb] for one in rounds),
                "added_wall": round(statistics.median(added), 4),
                "added_cpu": round(statistics.median(cpu), 4),
                "target": f"{'adds ' if verb == 'log' else ''}under {target} s",
            })  # fmt: skip
        if options.fsck:
            rows.append({"process": "rbl fsck", **summary([run([*RBL, "fsck"], store, variables)])})
    report("many commits", rows, {"commits": commits, "contents": contents, "runs": options.runs}, options.json)


if __name__ == "__main__":
    main()
