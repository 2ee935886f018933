"""What committing and restoring cost, for rblstore and the tools that people use today, in one run on the same files.

    python tests/benchmarks/peers.py --base BASE --fine-tune TUNED --adapter LORA --out docs/benchmarks/peers.json

Writes the document, and beside it a page of tables (``.md``) and, where matplotlib is installed, plots (``.svg``).
``--render peers.json`` makes the page and the plots again from a document that is there. What is not on PATH is
skipped, and named. The page cache is warm: every input is read first, and every tool works on copies made just before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import MB
from machine import machine, package_versions, tool_version
from measuring import SOURCE, Run, run
from peer_environment import variables_of
from peer_page import page
from peer_rounds import COPIES_ON_DISK, Round, one_round, read_through, tree_bytes
from peer_tools import ADAPTER, BASE, FINE_TUNE, PEERS, USUAL, Peer, installed
from targets import verdicts

LOADERS = ("from_pretrained", "repo.load")


def blank(peer: Peer) -> dict[str, Any]:
    """A tool's part of the document, before anything is measured."""
    return {"title": peer.title, "prepare": list(peer.prepare), "steps": {}, "store_bytes": {}}


def record(part: dict[str, Any], peer: Peer, found: Round) -> None:
    """Adds one round to a tool's part of the document."""
    for step in (*found.runs, *found.failures):
        entry = part["steps"].setdefault(
            step, {"command": peer.actions[step].line, "wall_s": [], "cpu_s": [], "peak_bytes": [], "failed": None}
        )
        taken: Run | None = found.runs.get(step)
        if taken is None:
            entry["failed"] = found.failures[step]
            continue
        entry["wall_s"].append(round(taken.wall, 5))
        entry["cpu_s"].append(round(taken.cpu, 5))
        entry["peak_bytes"].append(taken.peak)
    for what, size in found.stores.items():
        part["store_bytes"].setdefault(what, []).append(size)


def measure_loading(
    base: Path, rounds: int, work: Path, variables: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Loads the base into memory both ways by turns, each time in a fresh process; the first of each is thrown away.

    Raises:
        SystemExit: One of them failed, or the two do not give the same weights.
    """
    with tempfile.TemporaryDirectory(prefix="load-", dir=work) as name:
        folder = Path(name)
        for line in ("rbl init store", f"rbl -C store commit -m base --identity '{base}'"):
            run(["sh", "-c", line], folder, variables)
        architecture = (json.loads((base / "config.json").read_text()).get("architectures") or ["-"])[0]
        places = {"from_pretrained": str(base), "repo.load": "store"}
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in LOADERS}
        python = dict(variables) | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH")))),
            "PYTHONPYCACHEPREFIX": str(work / "compiled"),
        }
        script = str(Path(__file__).with_name("load_once.py"))
        for number in range(rounds + 1):
            for way in LOADERS if number % 2 == 0 else reversed(LOADERS):
                command = [sys.executable, script, way, places[way], architecture]
                done = subprocess.run(command, cwd=folder, env=python, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise SystemExit(f"{way} failed:\n{done.stderr.strip()[-2000:]}")
                if number:
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
    checks = {way: {(one["check"], one["model_bytes"]) for one in runs} for way, runs in found.items()}
    if checks[LOADERS[0]] != checks[LOADERS[1]]:
        raise SystemExit(f"the two ways of loading do not give the same weights: {checks}")
    return found


def write(document: dict[str, Any], out: Path) -> None:
    """Writes the document, its page and, where matplotlib is installed, its plots."""
    document["targets"] = [one.as_json() for one in verdicts(document)]
    out.write_text(json.dumps(document, indent=1) + "\n")
    plots: list[str] = []
    try:
        from plots import plot_peers
    except ImportError:
        print("matplotlib is not installed: no plots (pip install matplotlib)", file=sys.stderr)
    else:
        plots = [path.name for path in plot_peers(document, out)]
    out.with_suffix(".md").write_text(page(document, plots))


def _measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    sources = {BASE: options.base, FINE_TUNE: options.fine_tune, ADAPTER: options.adapter}
    sources = {tree: path.resolve() for tree, path in sources.items() if path is not None}
    needed = COPIES_ON_DISK * sum(tree_bytes(path) for path in sources.values())
    if shutil.disk_usage(work).free < needed:
        raise SystemExit(
            f"{work} has less than the {needed / MB:,.0f} MB that a round takes; choose another: --work DIR"
        )
    variables = variables_of(work, options.path)
    found, skipped = installed(options.peers, variables["PATH"])
    for name, why in skipped.items():
        print(f"skipped: {PEERS[name].title}: {why}", file=sys.stderr)
    tools = {peer.needs[-1]: tool_version(peer.version, variables) for peer in found}
    versions = package_versions() | tools
    document: dict[str, Any] = {
        "benchmark": "peers",
        "name": options.out.stem,
        "state": "warm",
        "machine": machine(work),
        "versions": versions,
        "inputs": {
            tree: {"name": path.name, "bytes": tree_bytes(path), "files": sum(one.is_file() for one in path.rglob("*"))}
            for tree, path in sources.items()
        },
        "rounds": options.rounds,
        "skipped": skipped,
        "peers": {peer.name: blank(peer) for peer in found},
        "floor_bytes": 0,
    }
    for path in sources.values():
        read_through(path)
    for number in range(-options.warm_ups, options.rounds):
        # Another tool begins each round: whatever drifts meets all alike.
        first = number % max(len(found), 1)
        for peer in (*found[first:], *found[:first]):
            print(f"round {number + 1 if number >= 0 else 'of warming up'}: {peer.title}", file=sys.stderr, flush=True)
            taken = one_round(peer, sources, work, variables)
            if number >= 0:
                record(document["peers"][peer.name], peer, taken)
        document["floor_bytes"] = run(["true"], work, variables).peak
        # What is measured so far stays, should anything stop the run.
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if not options.no_load:
        try:
            document["load"] = measure_loading(sources[BASE], options.rounds, work, variables)
        except SystemExit as error:
            document["load_failed"] = str(error).replace(str(work), "WORK")[:500]
            print(f"!!! loading: {error}", file=sys.stderr)
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", type=Path, metavar="DIR", help="a checkpoint with safetensors")
    parser.add_argument("--fine-tune", type=Path, metavar="DIR", help="a checkpoint tuned from it")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter of the base")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians are over these (5)")
    parser.add_argument("--warm-ups", type=int, default=1, metavar="N", help="rounds thrown away first (1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the document; its page and plots go beside it")
    parser.add_argument("--peers", nargs="+", default=USUAL, metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--path", type=Path, action="append", default=[], metavar="DIR", help="look for tools here first"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to work; five times the inputs must fit")
    parser.add_argument("--no-load", action="store_true", help="leave out loading into memory")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing; draw a document's page and plots anew"
    )
    options = parser.parse_args(arguments)
    if options.render is not None:
        document, out = json.loads(options.render.read_text()), options.render
    else:
        if options.base is None or options.out is None:
            parser.error("--base and --out are needed, or --render")
        options.out, out = options.out.absolute(), options.out.absolute()
        with tempfile.TemporaryDirectory(prefix="rbl-peers-", dir=options.work) as name:
            document = _measure(options, Path(name).resolve())
    write(document, out)
    print(out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
