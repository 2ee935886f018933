"""Fuzzing one reader with atheris, which sees what of our code an input reaches.

    python tests/hostile/atheris_driver.py TARGET [-max_total_time=60] [FOLDER] [options of libFuzzer]

``TARGET`` is a name of the table in ``fuzz_targets.py``; without one they are printed. Needs ``pip install atheris``.
A corpus is kept in ``FOLDER`` where one is given; what was found lies in the current directory as ``crash-*``, and
belongs into ``bombs.py`` or a plain test once it is mended.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    with atheris.instrument_imports(include=["rblstore"]):
        from fuzz_targets import make_targets, scratch

        importlib.import_module("rblstore.storage.planes")  # what is imported only when it is needed counts, too
    from confined import MEMORY, confined
    from mutation import LARGEST

    from rblstore.errors import RblError

    targets = make_targets(scratch())
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit("which target? " + ", ".join(targets))
    target = targets[sys.argv.pop(1)]
    for name in ("fsync", "fdatasync"):
        setattr(os, name, lambda descriptor: None)

    def read(data: bytes) -> None:
        for candidate in (data,) if target.mend is None else (data, target.mend(data)):
            try:
                with confined(seconds=3, memory=MEMORY + target.memory + (64 << 20)):  # watching takes some of both
                    target.read(candidate)
            except RblError:
                pass

    corpus = scratch()
    for number, seed in enumerate((*target.seeds, *target.hostile)):
        if len(seed) <= LARGEST:
            (corpus / str(number)).write_bytes(seed)
    words = corpus.with_name(corpus.name + ".words")
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words if 0 < len(word) < 64)
    )
    atheris.Setup([sys.argv[0], f"-dict={words}", f"-max_len={LARGEST}", *sys.argv[1:], str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
