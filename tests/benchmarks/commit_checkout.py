"""How long committing a base, adapters, and checking out take, against ``cp`` and ``sha256sum`` of the same files.

    python tests/benchmarks/commit_checkout.py --identity path/to/model --adapter path/to/lora --runs 5

Without ``--identity`` a checkpoint of ``--size`` megabytes is made. Every run starts with a new repository; files are
in the page cache for all of them alike.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from measuring import MIB, RBL, Run, environment, report, run, summary
from synthetic import write_checkpoint


def one_round(model: Path, adapters: Sequence[Path], folder: Path, variables: Mapping[str, str]) -> dict[str, Run]:
    """One of everything, in a folder that is left empty."""
    store, out, copy = folder / "store", folder / "out", folder / "copy"
    files = sorted(str(path) for path in model.rglob("*") if path.is_file())
    runs = {
        "sha256sum": run(["sha256sum", *files], folder, variables),
        "cp": run(["cp", "-R", str(model), str(copy)], folder, variables),
    }
    run([*RBL, "init", str(store)], folder, variables)
    runs["commit base"] = run([*RBL, "commit", "-m", "base", "--identity", str(model)], store, variables)
    for path in adapters:
        name = path.name.replace(" ", "-")
        command = [*RBL, "commit", "-m", name, "--behavior", f"{name}={path}"]
        runs[f"commit {name}"] = run(command, store, variables)
    runs["commit the base again"] = run(
        [*RBL, "commit", "-m", "again", "--allow-empty", "--identity", str(model)], store, variables
    )
    runs["checkout"] = run([*RBL, "checkout", "HEAD", str(out)], store, variables)
    runs["fsck"] = run([*RBL, "fsck"], store, variables)
    runs["fsck --full"] = run([*RBL, "fsck", "--full"], store, variables)
    for path in (store, out, copy):
        shutil.rmtree(path)
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--identity", type=Path, metavar="DIR", help="a checkpoint")
    parser.add_argument("--adapter", type=Path, action="append", default=[], metavar="DIR", help="of it; repeatable")
    parser.add_argument("--size", type=int, default=500, metavar="MB", help="of the one that is made otherwise (500)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds; medians are over these (3)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work; about four times the checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rbl-times-", dir=options.folder) as name:
        folder = Path(name)
        variables = environment(folder / "compiled")
        model = options.identity or write_checkpoint(folder / "model", options.size * 1_000_000)
        adapters = [path.resolve() for path in options.adapter]
        rounds = [one_round(model.resolve(), adapters, folder, variables) for _ in range(options.runs)]
        size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    floor = summary(one["sha256sum"] for one in rounds)["wall"] + summary(one["cp"] for one in rounds)["wall"]
    rows = []
    for what in rounds[0]:
        figures = summary(one[what] for one in rounds)
        rows.append({"what": what, **figures, "of_cp_and_sha256sum": round(figures["wall"] / floor, 2)})
    report("commit and checkout", rows, {"runs": options.runs, "checkpoint_mib": round(size / MIB)}, options.json)


if __name__ == "__main__":
    main()
