"""How cost grows: with the size of a checkpoint, from 10 MB to 8 GB, and with behaviors, from 1 to 10,000.

    python tests/benchmarks/scale.py --out docs/benchmarks/scale.json --peers cp restic borg-zstd

Checkpoints are BF16 weights, seeded normal, in tensors of at most 64 MB; they are written as they are made, and deleted
after they are measured. ``--max-bytes`` and ``--behaviors`` cut the run short; ``--render scale.json`` draws the page
and the plots anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import MB, digits, exponent, markdown_table, median
from machine import machine, package_versions, tool_version
from measuring import environment, run
from peer_environment import variables_of
from peer_rounds import COPIES_ON_DISK, one_round, read_through, tree_bytes
from peer_tools import BASE, PEERS, Peer, commit_of, installed, restore_of
from targets import SCALE_TARGETS, verdict_table, verdicts

OURS = "rblstore"
# The first is so small that what it takes is the fixed cost of a command.
FIXED = MB
SIZES = (FIXED, 10 * MB, 30 * MB, 100 * MB, 300 * MB, 1000 * MB, 3000 * MB, 8000 * MB)
FIT_FROM = 100 * MB
# Where one round takes long and noise matters little.
ONE_ROUND_FROM = 3000 * MB
OPERATIONS = {"commit": "commit_s", "checkout": "checkout_s"}


def point(peer: Peer, model: Path, rounds: int, work: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Commits and restores a checkpoint in every round; raw seconds, and the higher peak of both."""
    found: dict[str, Any] = {"bytes": tree_bytes(model), "commit_s": [], "checkout_s": [], "peak_bytes": []}
    for _ in range(rounds):
        taken = one_round(peer, {BASE: model}, work, variables, (commit_of(BASE), restore_of(BASE)), linked=True)
        found["stored_bytes"] = taken.stores.get(BASE)
        for step, member in ((commit_of(BASE), "commit_s"), (restore_of(BASE), "checkout_s")):
            if step in taken.runs:
                found[member].append(round(taken.runs[step].wall, 5))
        if taken.runs:
            found["peak_bytes"].append(max(one.peak for one in taken.runs.values()))
        if taken.failures:
            found["failed"] = next(iter(taken.failures.values()))
    return found


def exponents(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The power of a checkpoint's size by which commit and checkout grow, from 100 MB on.

    Returns:
        By operation: ``whole``, of the wall time as it is, and ``above_fixed_cost``, of what it takes more than the
        smallest checkpoint does, which is starting up; a line with an intercept looks flatter than it is.
    """
    found: dict[str, dict[str, float | None]] = {}
    for operation, member in OPERATIONS.items():
        times = sorted((one["bytes"], median(one[member])) for one in points if one[member])
        large = [(size, seconds) for size, seconds in times if size >= FIT_FROM and seconds is not None]
        fixed = next((seconds for size, seconds in times if size < FIT_FROM / 10), None)
        above = [] if fixed is None else [(size, seconds - fixed) for size, seconds in large]
        found[operation] = {"whole": exponent(large), "above_fixed_cost": exponent(above)}
    return found


def page(document: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The page of a run, in Markdown."""
    on = document["machine"]
    parts = [
        "# Growth",
        f"Written by `tests/benchmarks/scale.py`; every raw figure is in `{document['name']}.json`.",
        (
            f"{on['processor']}, {on['cores']} cores, {on['file_system']}, {on['kernel']}. Medians of "
            f"{document['rounds']} rounds, of one from {ONE_ROUND_FROM // MB:,} MB on. Load average at the "
            f"start: {on['load_average'][0]}."
        ),
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".",
        "## Targets",
        verdict_table(verdicts(document, SCALE_TARGETS)),
        "## With the size of a checkpoint",
    ]
    rows = []
    for name, points in document["sizes"].items():
        for one in points:
            size = one["bytes"]
            speeds = [
                None if seconds is None else size / MB / seconds
                for seconds in (median(one[member]) for member in OPERATIONS.values())
            ]
            times = [digits(median(one[member])) for member in OPERATIONS.values()]
            peak = max(one["peak_bytes"], default=None)
            rows.append((
                document["titles"][name], digits(size / MB, 0), *times, *(digits(speed, 0) for speed in speeds),
                digits(None if peak is None else peak / MB, 0), one.get("failed", "")[:80],
            ))  # fmt: skip
    header = ("", "MB", "commit, s", "checkout, s", "commit, MB/s", "checkout, MB/s", "peak, MB", "")
    parts.append(markdown_table(header, rows))
    lines = [
        (document["titles"][name], operation, digits(found["whole"], 3), digits(found["above_fixed_cost"], 3))
        for name, operations in document["exponents"].items()
        for operation, found in operations.items()
    ]
    parts.append(f"Exponents, fitted from {FIT_FROM // MB} MB on:")
    parts.append(markdown_table(("", "operation", "of the wall time", "above the fixed cost"), lines))
    if behaviors := document.get("behaviors"):
        parts.append("## With the number of behaviors")
        cells = [
            (number, *(digits(None if one is None else 1000 * one, 1) for one in (
                behaviors["commit_s"][number], behaviors["log_s"].get(number), behaviors["status_s"].get(number)
            )))
            for number in behaviors["commit_s"]
        ]  # fmt: skip
        parts.append(markdown_table(("behaviors", "commit, ms", "rbl log -n 20, ms", "rbl status, ms"), cells))
        parts.append("One process commits, one slot replaced each time; `log` and `status` are whole processes.")
    if document["skipped"]:
        parts += ["## What was skipped", "\n".join(f"- {name}: {why}" for name, why in document["skipped"].items())]
    parts += [f"![{plot}]({plot})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def write(document: dict[str, Any], out: Path) -> None:
    """Writes the document, its page and, where matplotlib is installed, its plots."""
    document["exponents"] = {name: exponents(points) for name, points in document["sizes"].items()}
    document["targets"] = [one.as_json() for one in verdicts(document, SCALE_TARGETS)]
    out.write_text(json.dumps(document, indent=1) + "\n")
    plots: list[str] = []
    try:
        from plots import plot_scale
    except ImportError:
        print("matplotlib is not installed: no plots (pip install matplotlib)", file=sys.stderr)
    else:
        plots = [path.name for path in plot_scale(document, out)]
    out.with_suffix(".md").write_text(page(document, plots))


def _measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    variables = variables_of(work, options.path)
    found, skipped = installed((OURS, *options.peers), variables["PATH"])
    for name, why in skipped.items():
        print(f"skipped: {PEERS[name].title}: {why}", file=sys.stderr)
    sizes = [size for size in SIZES if size <= options.max_bytes]
    needed = COPIES_ON_DISK * max(sizes)
    if shutil.disk_usage(work).free < needed:
        raise SystemExit(f"{work} has less than {needed / MB:,.0f} MB free; choose --work DIR or fewer --max-bytes")
    document: dict[str, Any] = {
        "benchmark": "scale",
        "name": options.out.stem,
        "machine": machine(work),
        "versions": package_versions() | {peer.needs[-1]: tool_version(peer.version, variables) for peer in found},
        "rounds": options.rounds,
        "skipped": skipped,
        "titles": {peer.name: peer.title for peer in found},
        "sizes": {peer.name: [] for peer in found},
    }
    generator = str(Path(__file__).with_name("synthetic.py"))
    for size in sizes:
        # Made by another process: what starts the measured ones must stay small, or they seem as large as it is.
        run([sys.executable, generator, str(work / "model"), str(size)], work, environment(work / "compiled"))
        read_through(work / "model")
        for peer in found:
            if peer.name == OURS or size <= options.peer_max_bytes:
                print(f"{size / MB:,.0f} MB: {peer.title}", file=sys.stderr, flush=True)
                rounds = 1 if size >= ONE_ROUND_FROM else options.rounds
                if size == FIXED:  # modules are compiled and programs are read for the first time
                    point(peer, work / "model", 1, work, variables)
                document["sizes"][peer.name].append(point(peer, work / "model", rounds, work, variables))
        shutil.rmtree(work / "model")
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.behaviors:
        from many_behaviors import measure_behaviors

        document["behaviors"] = measure_behaviors(options.behaviors, work, environment(work / "compiled"))
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="the document; its page and plots go beside it")
    parser.add_argument("--max-bytes", type=int, default=max(SIZES), metavar="N", help="largest checkpoint (8e9)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians are over these (3)")
    parser.add_argument("--behaviors", type=int, default=10_000, metavar="N", help="how many; 0 for none (10,000)")
    parser.add_argument(
        "--peers", nargs="*", default=[], metavar="NAME", help="other tools: cp, restic, borg-zstd, ..."
    )
    parser.add_argument("--peer-max-bytes", type=int, default=1000 * MB, metavar="N", help="for those (1e9)")
    parser.add_argument(
        "--path", type=Path, action="append", default=[], metavar="DIR", help="look for tools here first"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to work; five times the largest must fit")
    parser.add_argument("--render", type=Path, metavar="FILE", help="measure nothing; draw a page and plots anew")
    options = parser.parse_args(arguments)
    if options.render is not None:
        document, out = json.loads(options.render.read_text()), options.render
    elif options.out is None:
        parser.error("--out is needed, or --render")
    else:
        options.out = out = options.out.absolute()
        with tempfile.TemporaryDirectory(prefix="rbl-scale-", dir=options.work) as name:
            document = _measure(options, Path(name).resolve())
    write(document, out)
    print(out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
