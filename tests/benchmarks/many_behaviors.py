"""Commits ever more behaviors to one repository in one process; says what commits and the reading of history take."""

from __future__ import annotations

import json
import math
import struct
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import MB, neighbours
from measuring import RBL, find_rblstore, run

WIDTH, RANK = 64, 4
READS = 3


def _safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]], payload: bytes) -> None:
    """Writes F32 tensors whose bytes are those of the payload, one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload[:offset].ljust(offset, b"\0"))


def write_base(folder: Path) -> Path:
    """A checkpoint of one projection of 64 by 64."""
    _safetensors(folder / "model.safetensors", {"model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH)}, b"")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
    return folder


def write_adapter(folder: Path, number: int) -> Path:
    """A LoRA adapter for it, of rank 4; another number, other bytes."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): (RANK, WIDTH), name.format("B"): (WIDTH, RANK)}
    values = struct.pack("<f", 1.0 + number / MB) * (2 * RANK * WIDTH)
    _safetensors(folder / "adapter_model.safetensors", tensors, values)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def measure_behaviors(count: int, work: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Commits so many behaviors, each in the place of the one before.

    Args:
        count: How many.
        work: Where the repository is made, for as long as it takes.
        variables: What ``rbl`` runs under.

    Returns:
        Every commit's seconds in order (``commits_s``); at 1, 10, 100, ...: the median of the commits around it
        (``commit_s``), and what ``rbl log -n 20`` and ``rbl status`` take there (``log_s``, ``status_s``).
    """
    find_rblstore()
    import rblstore

    decades = [10**power for power in range(len(str(count))) if 10**power <= count]
    taken: list[float] = []
    reads: dict[str, dict[str, float]] = {"log_s": {}, "status_s": {}}
    with tempfile.TemporaryDirectory(prefix="behaviors-", dir=work) as name:
        folder = Path(name)
        adapter = folder / "adapter"
        with rblstore.init(folder / "store") as repository:
            repository.commit("base", identity=write_base(folder / "base"))
            for number in range(1, count + 1):
                write_adapter(adapter, number)
                start = time.perf_counter()
                repository.commit(f"behavior {number}", behaviors={"a": adapter})
                taken.append(time.perf_counter() - start)
                if number in decades:
                    print(f"behaviors: {number}", file=sys.stderr, flush=True)
                    for member, verb in (("log_s", ("log", "-n", "20")), ("status_s", ("status",))):
                        walls = [run([*RBL, *verb], folder / "store", variables).wall for _ in range(1 + READS)]
                        reads[member][str(number)] = sorted(walls[1:])[READS // 2]
    around = {str(number): neighbours(taken, number) for number in decades}
    return {"count": count, "commit_s": around, **reads, "commits_s": [round(seconds, 6) for seconds in taken]}
