"""How long ``rbl log``, ``rbl status`` and ``rbl branch`` take, against the imports that they cannot do without.

    python tests/benchmarks/startup.py --runs 15 --json startup.json

Whole processes, one of each in turn, so that whatever else the machine does meets all of them alike. The figure is the
ratio to ``python -c "import sqlalchemy, click"`` in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from measuring import RBL, environment, report, run, summary
from synthetic import write_checkpoint

REFERENCE = "import sqlalchemy, click"


def make_repository(folder: Path, commits: int, variables: Mapping[str, str]) -> Path:
    """A repository with a history of so many commits, and a tag."""
    model = write_checkpoint(folder / "model", 1 << 20)
    run([*RBL, "init", str(folder / "store")], folder, variables)
    store = folder / "store"
    run([*RBL, "commit", "-m", "base", "--identity", str(model)], store, variables)
    for number in range(1, commits):
        run([*RBL, "commit", "-m", f"commit {number}", "--allow-empty"], store, variables)
    run([*RBL, "tag", "v1"], store, variables)
    return store


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="rounds; medians are over these (9)")
    parser.add_argument("--commits", type=int, default=20, metavar="N", help="commits of the history that is made (20)")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="measure in this one instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rbl-startup-") as name:
        folder = Path(name)
        variables = environment(folder / "compiled")
        store = options.repository or make_repository(folder, options.commits, variables)
        commands = {"imports": [sys.executable, "-c", REFERENCE]}
        commands |= {verb: [*RBL, verb] for verb in ("log", "status", "branch")}
        for command in commands.values():
            run(command, store, variables)
        rounds = [
            {name: run(command, store, variables) for name, command in commands.items()} for _ in range(options.runs)
        ]
    rows = []
    for verb in commands:
        figures = summary(one[verb] for one in rounds)
        reference = summary(one["imports"] for one in rounds)
        rows.append({
            "process": REFERENCE if verb == "imports" else f"rbl {verb}",
            **figures,
            "ratio_wall": round(figures["wall"] / reference["wall"], 2),
            "ratio_cpu": round(figures["cpu"] / reference["cpu"], 2),
            "ratio_paired": round(statistics.median(one[verb].wall / one["imports"].wall for one in rounds), 2),
        })  # fmt: skip
    report("startup", rows, {"runs": options.runs, "unit": "s"}, options.json)


if __name__ == "__main__":
    main()
