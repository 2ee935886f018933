"""Loads a model into memory once, in a process of its own, and prints what that took as one JSON document.

    python load_once.py from_pretrained DIR ARCHITECTURE
    python load_once.py repo.load REPOSITORY ARCHITECTURE

torch, transformers and the model's class (``-`` for none) are imported and the repository is opened first, whichever of
the two is measured; then the clock starts. Afterwards one byte in every 4,096 of every parameter is read, so that what
is mapped and not yet read is paid for as well. Then the model is loaded once more, when nothing is left to be imported.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = 4096


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Bytes of this process that were in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def touch_pages(model: Any) -> tuple[int, int]:
    """Reads one byte of every page of every parameter and buffer; returns their sum and the bytes of all of them."""
    import torch

    total = size = 0
    for tensor in (*model.parameters(), *model.buffers()):
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else None
        if flat is not None:
            total += int(flat[::PAGE].sum(dtype=torch.int64))
            size += flat.numel()
    return total, size


def loader(way: str, place: str) -> Callable[[], Any]:
    """What loads the model, one way or the other, with nothing left to be opened."""
    if way == "from_pretrained":
        from transformers import AutoModelForCausalLM

        return lambda: AutoModelForCausalLM.from_pretrained(place)
    import rblstore

    repository = rblstore.open(place)
    return lambda: repository.load("HEAD")


def main() -> None:
    """Loads as the arguments say."""
    import torch  # noqa: F401
    import transformers

    import rblstore  # noqa: F401

    way, place, architecture = sys.argv[1:]
    # transformers imports what is asked for, when it is asked for.
    for name in ("AutoModelForCausalLM", architecture):
        getattr(transformers, name, None)
    load = loader(way, place)
    imported = resident()
    start = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    total, size = touch_pages(model)
    touched = time.perf_counter()
    document = {
        "load_s": loaded - start,
        "touch_s": touched - loaded,
        "total_s": touched - start,
        "imported_bytes": imported,
        "peak_bytes": peak(),
        "model_bytes": size,
        "check": total,
        "dtype": str(next(model.parameters()).dtype),
    }
    del model
    start = time.perf_counter()
    touch_pages(load())
    print(json.dumps(document | {"again_s": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
