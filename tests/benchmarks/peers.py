"""What committing and restoring cost, for rblstore and for the tools that people use today, in one run on the same files.

    python tests/benchmarks/peers.py --base BASE --fine-tune TUNED --adapter LORA --rounds 5 --out docs/benchmarks/peers.json

Writes the document, and beside it a page of tables (``.md``) and, where matplotlib is installed, plots (``.svg``).
``--render peers.json`` makes the page and the plots again from a document that is there. What is not on PATH is skipped,
and named. The page cache is warm: every input is read first, and every tool works on copies made just before.
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

from figures import MB, digits, markdown_table, spread
from machine import machine, package_versions, tool_version
from measuring import MIB, Run, run
from peer_rounds import COPIES_ON_DISK, Round, one_round, read_through, tree_bytes
from peer_tools import ADAPTER, BASE, FINE_TUNE, PEERS, STEPS, TOUCHED, TREES, USUAL, Peer, installed
from targets import highest_peak, stored, verdict_table, verdicts

SOURCE = Path(__file__).parents[2]
LOADERS = ("from_pretrained", "repo.load")
# Two of the tools are Python as well and must not meet the packages of this process.
UNSET = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


def variables_of(work: Path, path: Sequence[Path]) -> dict[str, str]:
    """What every tool runs under: this user's environment with a home of its own, so that no setting or cache is shared.

    Args:
        work: Where that home is made, and a program ``rbl`` where none is on the path.
        path: Folders to look for programs in first.
    """
    home, programs = work / "home", work / "bin"
    home.mkdir(parents=True)
    programs.mkdir()
    variables = {name: value for name, value in os.environ.items() if name not in UNSET}
    variables |= {"HOME": str(home), "RESTIC_PASSWORD": "benchmark", "DVC_SITE_CACHE_DIR": str(work / "dvc")}
    variables |= {"HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "true", "RBL_AUTHOR": "benchmark"}
    for who in ("AUTHOR", "COMMITTER"):
        variables |= {f"GIT_{who}_NAME": "benchmark", f"GIT_{who}_EMAIL": "benchmark@example.org"}
    folders = [*(str(folder.resolve()) for folder in path), variables.get("PATH", os.defpath)]
    variables["PATH"] = os.pathsep.join(folders)
    if shutil.which("rbl", path=variables["PATH"]) is None:
        # The source tree beside this script, run as a module; its compiled modules are kept as an installation keeps them.
        wrapper = programs / "rbl"
        wrapper.write_text(
            f'#!/bin/sh\nPYTHONPATH="{SOURCE}" PYTHONPYCACHEPREFIX="{work / "compiled"}" '
            f'exec "{sys.executable}" -m rblstore "$@"\n'
        )
        wrapper.chmod(0o755)
        variables["PATH"] = os.pathsep.join((str(programs), variables["PATH"]))
        print("no rbl on PATH: the source tree is measured", file=sys.stderr)
    return variables


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


def time_table(document: Mapping[str, Any]) -> str:
    """Median seconds of every step (least to most in brackets), a line a tool; what failed is n/a."""
    rows = []
    for part in document["peers"].values():
        cells = []
        for step in STEPS:
            entry = part["steps"].get(step)
            found = None if entry is None or entry["failed"] else spread(entry["wall_s"])
            if found is None:
                cells.append("" if entry is None else "n/a")
            else:
                cells.append(f"{digits(found.median)} ({digits(found.least)} to {digits(found.most)})")
        rows.append((part["title"], *cells))
    return markdown_table(("seconds", *STEPS), rows)


def size_table(document: Mapping[str, Any]) -> str:
    """Megabytes of each store after each commit, and the highest peak of memory, a line a tool."""
    after = (*TREES, TOUCHED)
    raw = [document["inputs"].get(tree, {}).get("bytes", 0) / MB for tree in TREES]
    rows = [("(raw, added up)", *(digits(sum(raw[: at + 1]), 1) for at in range(len(raw))), "", "")]
    for name, part in document["peers"].items():
        sizes = [stored(document, name, what) for what in after]
        cells = [digits(None if size is None else size / MB, 1) for size in sizes]
        peak = highest_peak(document, name)
        rows.append((part["title"], *cells, digits(None if peak is None else peak / MB, 0)))
    header = ("MB", "base", "+ fine-tune", "+ adapter", "+ touched base", "peak memory")
    return markdown_table(header, rows)


def load_table(document: Mapping[str, Any]) -> str:
    """Seconds and memory of loading the base into memory, both ways."""
    rows = []
    for way, runs in document.get("load", {}).items():
        found = {member: spread(one[member] for one in runs) for member in ("load_s", "total_s", "again_s")}
        over = spread(one["peak_bytes"] - one["imported_bytes"] for one in runs)
        times = [
            "n/a" if one is None else f"{digits(one.median, 3)} ({digits(one.least, 3)} to {digits(one.most, 3)})"
            for one in found.values()
        ]
        rows.append((way, *times, digits(None if over is None else over.most / MB, 0)))
    header = ("seconds", "load", "and every page read", "the same again", "peak over the imports, MB")
    return markdown_table(header, rows)


def page(document: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The page of a run, in Markdown."""
    on, versions = document["machine"], document["versions"]
    memory = "?" if on["memory_bytes"] is None else digits(on["memory_bytes"] / MIB / 1024, 0)
    failed: dict[str, list[str]] = {}
    for part in document["peers"].values():
        for step, entry in part["steps"].items():
            if entry["failed"]:
                failed.setdefault(f"{part['title']}: {entry['failed']}", []).append(step)
    parts = [
        "# rblstore and its peers",
        f"Written by `tests/benchmarks/peers.py`; every raw figure is in `{document['name']}.json`, with the commands.",
        f"{on['processor']}, {on['cores']} cores, {memory} GiB, {on['file_system']}, {on['kernel']}. Medians of "
        f"{document['rounds']} rounds (least to most), page cache warm, rounds interleaved across tools. Load average at the "
        f"start: {on['load_average'][0]}.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "Inputs: "
        + ", ".join(f"{tree} {digits(found['bytes'] / MB, 1)} MB" for tree, found in document["inputs"].items())
        + ".",
        "## Targets",
        verdict_table(verdicts(document)),
        "## Time",
        time_table(document),
        "A checkout of rblstore verifies every digest, and of an adapter writes the base beside it, as that is what loads; "
        "the other tools restore the adapter alone. `cp + sha256sum` verifies as well; DVC and git-lfs do not.",
        "## Size and memory",
        size_table(document),
        "Peak memory is that of the largest single process of a step, as the kernel reports it when the process has ended "
        f"(`ru_maxrss`), the highest of all steps and rounds; what measures takes {digits(document['floor_bytes'] / MB, 0)} MB "
        "itself, below which nothing can be seen.",
        "## Loading into memory",
        load_table(document)
        if document.get("load")
        else f"Not measured: {document.get('load_failed', 'not asked for')}",
    ]
    if failed:
        lines = [f"- {said} ({', '.join(steps)})" for said, steps in failed.items()]
        parts += ["## What failed", "\n".join(lines)]
    if document["skipped"]:
        parts += ["## What was skipped", "\n".join(f"- {name}: {why}" for name, why in document["skipped"].items())]
    parts += [f"![{plot}]({plot})" for plot in plots]
    return "\n\n".join(parts) + "\n"


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
