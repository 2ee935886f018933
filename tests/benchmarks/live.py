"""Live models, side by side in one run: switching, what merging leaves behind, and what watching a training loop costs.

    python tests/benchmarks/live.py --model path/to/model --random-gb 1.5 --out docs/benchmarks/live.json

Compares with peft's ``set_adapter``, ``unload``, ``delete_adapter``, ``merge_adapter`` and ``unmerge_adapter``, a plain
copy of the tensors that adapters touch, and ``from_pretrained``. Adapters are made on the spot; without a model, so is
everything. Cycles and training are measured on the first model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine, package_versions
from measuring import add_common, find_rblstore, keep, measure_and_report

PARTS = ("switching", "cycles", "training")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The document of a run.

    Args:
        options: The arguments.
        folder: Where models, adapters and repositories are made.
    """
    import live_cycles
    import live_models
    import live_switching
    import live_training
    import torch

    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {
        "benchmark": "live",
        "name": "live" if options.out is None else options.out.stem,
        "machine": machine(folder),
        "versions": package_versions(),
        "threads": options.threads,
        "rounds": options.rounds,
        "subjects": {},
    }
    bases = {}
    if options.model is not None:
        bases[options.model.name] = options.model.resolve()
    if options.random_gb:
        say("making a random model")
        size = options.random_gb * 1e9
        bases[f"random-{options.random_gb:g}-GB"] = live_models.write_random_model(folder / "random", size)
    for number, (name, base) in enumerate(bases.items()):
        say(f"{name}: adapters and repository")
        subject = live_models.prepare(name, base, folder)
        if "switching" in options.parts:
            say(f"{name}: switching")
            document["subjects"][name] = live_switching.measure(subject, options.rounds)
            keep(document, options)
        if number == 0 and "cycles" in options.parts:
            say(f"{name}: cycles")
            document["cycles"] = live_cycles.measure(subject, sorted(options.cycles), options.dtypes)
            keep(document, options)
        if number == 0 and "training" in options.parts:
            say(f"{name}: training")
            document["training"] = live_training.measure(
                subject, folder, rounds=options.training_rounds, every=options.every, checks=options.checks,
                least=options.step_seconds,
            )  # fmt: skip
    return document


def say(text: str) -> None:
    """Where it is, to stderr."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common(parser)
    parser.add_argument("--random-gb", type=float, default=0.0, metavar="GB", help="a random model as well, that large")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of switching (7)")
    parser.add_argument("--training-rounds", type=int, default=3, metavar="N", help="of training loops (3)")
    parser.add_argument(
        "--cycles", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="N", help="(1 10 100 1000)"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], metavar="TYPE", help="of the cycles")
    parser.add_argument("--every", type=int, default=4, metavar="N", help="check and commit every N-th step (4)")
    parser.add_argument("--checks", type=int, default=11, metavar="N", help="checks or commits in a loop (11)")
    parser.add_argument("--step-seconds", type=float, default=0.2, metavar="S", help="a step takes at least (0.2)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (everything)")
    options = parser.parse_args(arguments)
    find_rblstore()
    from live_page import page

    if options.render is None and options.model is None and not options.random_gb:
        parser.error("--model or --random-gb is needed, or --render")
    measure_and_report(options, measure, page)


if __name__ == "__main__":
    main()
