"""Peak memory of ``rbl commit`` and ``rbl checkout``: of a checkpoint that is given, and of made ones of growing size.

    python tests/benchmarks/memory.py --checkpoint path/to/model --sizes 100 500 2000 --json memory.json

A process's peak is what the kernel says of it when it has ended (``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from measuring import MIB, RBL, environment, report, run
from synthetic import write_checkpoint


def measure(name: str, model: Path, folder: Path, variables: Mapping[str, str]) -> dict[str, object]:
    """Commits a directory into a new repository and checks it out; nothing of it stays."""
    store, out = folder / "store", folder / "out"
    run([*RBL, "init", str(store)], folder, variables)
    committed = run([*RBL, "commit", "-m", "base", "--identity", str(model)], store, variables)
    written = run([*RBL, "checkout", "HEAD", str(out)], store, variables)
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    for path in (store, out):
        shutil.rmtree(path)
    return {
        "checkpoint": name,
        "mib": round(size / MIB),
        "commit_peak_mib": round(committed.peak / MIB, 1),
        "commit_s": round(committed.wall, 2),
        "checkout_peak_mib": round(written.peak / MIB, 1),
        "checkout_s": round(written.wall, 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], metavar="DIR", help="repeatable")
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 500, 2000], metavar="MB", help="of made ones")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work; about three times the largest size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rbl-memory-", dir=options.folder) as name:
        folder = Path(name)
        variables = environment(folder / "compiled")
        rows = [measure(model.name, model.resolve(), folder, variables) for model in options.checkpoint]
        for megabytes in options.sizes:
            model = write_checkpoint(folder / "model", megabytes * 1_000_000)
            rows.append(measure(f"made, {megabytes} MB", model, folder, variables))
            shutil.rmtree(model)
    report("memory", rows, {"processes": "one of each"}, options.json)


if __name__ == "__main__":
    main()
