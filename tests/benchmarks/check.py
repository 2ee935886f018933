"""What ``rbl fsck`` takes: quick against reading the packs and taking their XXH3, full against ``sha256sum``.

    python tests/benchmarks/check.py --identity BASE --overlay FINE_TUNE --adapter LORA --adapter LORA --json check.json

The references are whole processes: ``cat`` of the packs, one thread that reads them and takes their XXH3, ``rbl
status`` for the start, and ``sha256sum`` of all that was committed. The full check takes two digests of each tensor,
its own and its file's, and decodes it besides.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import MIB, RBL, environment, report, run, summary

_XXH3 = """
import sys, xxhash
room = bytearray(1 << 20)
for name in sys.argv[1:]:
    digest = xxhash.xxh3_64()
    with open(name, "rb", buffering=0) as stream:
        while count := stream.readinto(room):
            digest.update(memoryview(room)[:count])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--identity", type=Path, required=True, metavar="DIR", help="a checkpoint")
    parser.add_argument("--overlay", type=Path, action="append", default=[], metavar="DIR", help="of it; repeatable")
    parser.add_argument("--adapter", type=Path, action="append", default=[], metavar="DIR", help="for it; repeatable")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds; medians are over these (5)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rbl-check-", dir=options.folder) as name:
        folder = Path(name)
        variables = environment(folder / "compiled")
        store = folder / "store"
        run([*RBL, "init", str(store)], folder, variables)
        base = str(options.identity.resolve())
        run([*RBL, "commit", "-m", "base", "--identity", base], store, variables)
        for number, path in enumerate((*options.adapter, *options.overlay)):
            behavior = f"behavior{number}={path.resolve()}"
            run([*RBL, "commit", "-m", f"behavior {number}", "--behavior", behavior], store, variables)
            run([*RBL, "commit", "-m", f"without {number}", "--remove", f"behavior{number}"], store, variables)
        packs = sorted(map(str, (store / ".rbl" / "packs").rglob("*.pack")))
        folders = (options.identity, *options.overlay, *options.adapter)
        given = [str(path.resolve()) for one in folders for path in sorted(one.rglob("*")) if path.is_file()]
        commands = {
            "cat packs": ["cat", *packs],
            "XXH3 of packs": [sys.executable, "-c", _XXH3, *packs],
            "rbl status": [*RBL, "status"],
            "rbl fsck": [*RBL, "fsck"],
            "sha256sum of files": ["sha256sum", *given],
            "rbl fsck --full": [*RBL, "fsck", "--full"],
        }
        for command in commands.values():
            run(command, store, variables)
        rounds = [
            {name: run(command, store, variables) for name, command in commands.items()} for _ in range(options.runs)
        ]
        stored, raw = (sum(Path(path).stat().st_size for path in paths) for paths in (packs, given))
    rows = []
    for what in commands:
        size = {"rbl fsck --full": raw, "sha256sum of files": raw, "rbl status": 0}.get(what, stored)
        figures = summary(one[what] for one in rounds)
        rows.append(
            {"process": what, **figures, "mib": round(size / MIB), "mib_s": round(size / MIB / figures["wall"])}
        )
    report("check", rows, {"runs": options.runs, "packs": len(packs), "unit": "s"}, options.json)


if __name__ == "__main__":
    main()
