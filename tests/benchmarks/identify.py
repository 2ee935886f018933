"""How long ``rbl identify`` takes and its peak memory: a byte copy, and the copy cast to another element type.

    python tests/benchmarks/identify.py --checkpoint path/to/model --sizes 536 4000 --behaviors 1000

The checkpoint is in the repository, the copies are loose files; ``sha256sum`` of the copy stands beside. The page cache
is warm. With ``--behaviors`` a repository holds so many adapters besides, each in a commit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import MIB, RBL, environment, find_rblstore, report, run
from synthetic import write_checkpoint

find_rblstore()


def apart(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function in another process: one that measures others must not have been large."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(function, arguments)


def cast_copy(source: Path, target: Path) -> None:
    """Writes a safetensors file whose BF16 and F32 tensors are cast to F16, tensor by tensor."""
    from rblstore.checkpoints.safetensors_header import encode_header, lay_out, read_header
    from rblstore.operations.identify_nearest import cast

    with source.open("rb") as stream:
        header = read_header(lambda at, size: os.pread(stream.fileno(), size, at), source.stat().st_size)
        floats = ("BF16", "F32")
        shapes = {one.name: ("F16" if one.dtype in floats else one.dtype, one.shape) for one in header.tensors}
        spans = {one.name: one for one in header.tensors}
        with target.open("wb") as out:
            out.write(encode_header(shapes))
            for planned in lay_out(shapes):
                span = spans[planned.name]
                data = os.pread(stream.fileno(), span.size, header.data_offset + span.begin)
                out.write(cast(data, span.dtype, "F16") if span.dtype in floats else data)


def write_adapters(folder: Path, count: int) -> None:
    """Makes a small base and commits adapters on it, each of its own values."""
    import rblstore

    tensors = {f"model.layers.{layer}.self_attn.q_proj.weight": (32, 32) for layer in range(4)}
    save(folder / "small" / "model.safetensors", tensors, 0)
    (folder / "small" / "config.json").write_text('{"model_type": "llama"}')
    factors = {}
    for name in tensors:
        module = "base_model.model." + name.removesuffix(".weight")
        factors |= {f"{module}.lora_A.weight": (4, 32), f"{module}.lora_B.weight": (32, 4)}
    with rblstore.open(folder / "store") as repo:
        repo.switch("small", create=True, orphan=True)
        repo.commit("small", identity=folder / "small", author="a")
        for number in range(count):
            save(folder / "adapter" / "adapter_model.safetensors", factors, number + 1)
            (folder / "adapter" / "adapter_config.json").write_text(
                '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}'
            )
            repo.commit(f"adapter {number}", behaviors={"own": folder / "adapter"}, author="a")


def save(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Writes a safetensors file of seeded F32 values."""
    from rblstore.checkpoints.safetensors_header import encode_header, lay_out

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(seed)
    planned = {name: ("F32", shape) for name, shape in shapes.items()}
    with path.open("wb") as out:
        out.write(encode_header(planned))
        for span in lay_out(planned):
            out.write(drawn.standard_normal(span.shape).astype("<f4").tobytes())


def measure(
    name: str, model: Path, folder: Path, behaviors: int, rounds: int, variables: Mapping[str, str]
) -> dict[str, object]:
    """Medians over rounds, in which the commands take turns."""
    store, loose = folder / "store", folder / "loose"
    loose.mkdir()
    run([*RBL, "init", str(store)], folder, variables)
    run([*RBL, "commit", "-m", "base", "--identity", str(model)], store, variables)
    if behaviors:
        apart(write_adapters, folder, behaviors)
    copy, other = loose / "copy.safetensors", loose / "cast.safetensors"
    shutil.copy(model / "model.safetensors", copy)
    apart(cast_copy, copy, other)
    commands = {
        "sha256sum": ["sha256sum", str(copy)],
        "exact": [*RBL, "identify", str(copy)],
        "cast": [*RBL, "identify", str(other)],
    }
    taken: dict[str, list[float]] = {what: [] for what in commands}
    peaks: dict[str, int] = dict.fromkeys(commands, 0)
    for _ in range(rounds):
        for what, command in commands.items():
            done = run(command, store, variables)
            taken[what].append(done.wall)
            peaks[what] = max(peaks[what], done.peak)
    size = copy.stat().st_size
    for path in (store, loose):
        shutil.rmtree(path)
    row: dict[str, object] = {"checkpoint": name, "mb": round(size / 1e6), "behaviors": behaviors}
    for what in commands:
        row[f"{what}_s"] = round(statistics.median(taken[what]), 2)
    row |= {f"{what}_peak_mib": round(peaks[what] / MIB) for what in ("exact", "cast")}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], metavar="DIR", help="repeatable")
    parser.add_argument("--sizes", type=int, nargs="*", default=[536], metavar="MB", help="of made ones, BF16")
    parser.add_argument("--behaviors", type=int, default=0, metavar="N", help="adapters in the repository besides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work; four times the largest size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rbl-identify-", dir=options.folder) as name:
        folder = Path(name)
        variables = environment(folder / "compiled")
        rows = [
            measure(model.name, model.resolve(), folder, options.behaviors, options.rounds, variables)
            for model in options.checkpoint
        ]
        for megabytes in options.sizes:
            model = folder / "model"
            apart(write_checkpoint, model, megabytes * 1_000_000)
            rows.append(measure(f"made, {megabytes} MB", model, folder, options.behaviors, options.rounds, variables))
            shutil.rmtree(model)
    report("identify", rows, {"rounds": options.rounds, "target": "a copy of 536 MB in under 3 s"}, options.json)


if __name__ == "__main__":
    main()
