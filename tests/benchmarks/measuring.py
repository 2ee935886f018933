"""Whole processes, measured from outside: wall clock, CPU time and peak memory; medians of several runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2]
RBL = (sys.executable, "-m", "rblstore")
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        wall: Seconds from its start to its end.
        cpu: Seconds of user and system time, those of its threads included.
        peak: Bytes of the largest resident set of any one process among it and those that it waited for. A child
            inherits the peak of whoever starts it, so what measures must stay small itself.
    """

    wall: float
    cpu: float
    peak: int


class ProcessFailedError(SystemExit):
    """A measured process failed. Left alone it ends the script with what that process wrote to stderr."""


def environment(cache: Path) -> dict[str, str]:
    """What every measured process runs under: one thread a library, compiled modules kept in a folder of ours.

    Args:
        cache: Where Python keeps compiled modules, as an installed package has them; the first run fills it.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(cache)}
    if importlib.util.find_spec("rblstore") is None:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SOURCE), variables.get("PYTHONPATH"))))
    return variables


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that measure one model within one process, for :func:`measure_and_report`."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="a causal language model's checkpoint")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of torch (every core)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to make models and repositories")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the document without a page")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the document; its page goes beside it")
    parser.add_argument("--render", type=Path, metavar="FILE", help="measure nothing; write a document's page anew")


def measure_and_report(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    page: Callable[[Mapping[str, Any]], str],
) -> None:
    """Measures, or reads what was measured; writes the document and its page, and prints the page.

    Args:
        options: As :func:`add_common` has them.
        measure: Gives the document, from the options and a folder that goes away afterwards.
        page: Makes Markdown of it.
    """
    if options.render is not None:
        document, out = json.loads(options.render.read_text()), options.render
    else:
        os.environ["HF_HUB_OFFLINE"] = "1"
        with tempfile.TemporaryDirectory(prefix="rbl-benchmark-", dir=options.work) as name:
            document = measure(options, Path(name))
        keep(document, options)
        out = options.out
    if out is not None:
        out.with_suffix(".md").write_text(page(document))
    print(page(document))


def keep(document: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Writes a document, or what there is of it so far for a run that is cut short."""
    for path in filter(None, (options.out, options.json)):
        path.write_text(json.dumps(document, indent=1) + "\n")


def find_rblstore() -> None:
    """Lets this process import rblstore from the source tree, where it is not installed."""
    if importlib.util.find_spec("rblstore") is None:
        sys.path.insert(0, str(SOURCE))


def run(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Run:
    """Runs a process to its end, its output thrown away, and says what it took.

    Raises:
        ProcessFailedError: It failed; what it wrote to stderr is shown.
    """
    # A file, no pipe: what a process leaves running behind it would keep a pipe open.
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(variables), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=stderr,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip()
            raise ProcessFailedError(f"{' '.join(command)} exited {process.returncode}:\n{said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def summary(runs: Iterable[Run]) -> dict[str, float]:
    """Medians and minima over the runs; seconds and MiB."""
    taken = list(runs)
    return {
        "wall": round(statistics.median(one.wall for one in taken), 4),
        "cpu": round(statistics.median(one.cpu for one in taken), 4),
        "wall_min": round(min(one.wall for one in taken), 4),
        "cpu_min": round(min(one.cpu for one in taken), 4),
        "peak_mib": round(max(one.peak for one in taken) / MIB, 1),
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any], to: Path | None) -> None:
    """Prints a table, and writes the same as a JSON document where one is asked for."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    print(f"{title} ({', '.join(f'{key} {value}' for key, value in details.items())})")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if to is not None:
        document = {"benchmark": title, "python": sys.version.split()[0], **details, "rows": list(rows)}
        to.write_text(json.dumps(document, indent=2) + "\n")
