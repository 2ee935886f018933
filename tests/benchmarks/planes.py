"""Why the codecs are as they are: each step of them measured by itself, on the bytes of a bf16 checkpoint.

    python tests/benchmarks/planes.py --base BASE --fine-tune TUNED

For docs/decisions/0009-codecs.md. CPU time of one thread, from memory to memory; the best of some rounds, since other
work on the machine only ever adds. Every transform is undone and compared with what went in.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from codec_samples import Sample, checkpoint_samples
from figures import MB, markdown_table
from measuring import find_rblstore

Words = Any
Compress = Callable[[bytes], bytes]


def rotated(values: Words) -> Words:
    """One bit to the left, the sign last."""
    return (values << 1) | (values >> 15)


def folded_difference(values: Words, beneath: Words) -> Words:
    """The difference in integers that wrap, its sign the lowest bit."""
    difference = values - beneath
    return (difference << 1) ^ (difference.view("<i2") >> 15).view("<u2")


def require_undone(values: Words, beneath: Words | None) -> None:
    """Fails where a transform loses something."""
    turned = rotated(values)
    back = [(turned >> 1) | (turned << 15)]
    if beneath is not None:
        words = folded_difference(values, beneath)
        back.append(((words >> 1) ^ (0 - (words & 1))) + beneath)
    if any(not np.array_equal(one, values) for one in back):
        raise SystemExit("a transform does not give back what it was given")


def planes(words: Words) -> tuple[bytes, bytes]:
    """High bytes and low bytes."""
    return (words >> 8).astype("u1").tobytes(), words.astype("u1").tobytes()


def compressors() -> Iterator[tuple[str, Compress]]:
    """What a plane may be compressed by."""
    from rblstore.storage.compressors import _entropy_parameters

    for level in (1, 3):
        yield f"zstd -{level}", lambda data, level=level: zstandard.ZstdCompressor(level=level).compress(data)
    parameters = _entropy_parameters()
    yield "entropy only", lambda data: zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def timed(work: Callable[[bytes], bytes], pieces: Sequence[bytes], rounds: int) -> tuple[list[bytes], float]:
    """What comes out, and the fewest seconds of CPU time that it took."""
    best, out = float("inf"), []
    for _ in range(rounds):
        start = time.thread_time()
        out = [work(piece) for piece in pieces]
        best = min(best, time.thread_time() - start)
    return out, best


def row(name: str, pieces: Sequence[bytes], how: str, compress: Compress, rounds: int) -> tuple[str, ...]:
    """A line of the table: ratio, bits an element of one byte, MB/s of the plane in and out."""
    raw = sum(map(len, pieces))
    stored, encoding = timed(compress, pieces, rounds)
    back, decoding = timed(zstandard.ZstdDecompressor().decompress, stored, rounds)
    if back != list(pieces):
        raise SystemExit(f"{how} does not give back what it was given: {name}")
    size = sum(map(len, stored))
    speeds = (f"{raw / MB / seconds:.0f}" for seconds in (encoding, decoding))
    return name, how, f"{raw / size:.3f}", f"{8 * size / raw:.2f}", *speeds


def tables(samples: Sequence[Sample], rounds: int) -> Iterator[str]:
    """One table a sample."""
    for sample in samples:
        frames = [np.frombuffer(frame, "<u2") for frame in sample.frames]
        bases = None if sample.bases is None else [np.frombuffer(base, "<u2") for base in sample.bases]
        transforms: dict[str, list[Words]] = {"plain": frames, "rotated": [rotated(frame) for frame in frames]}
        if bases is not None:
            pairs = list(zip(frames, bases, strict=True))
            transforms = {
                "XOR": [frame ^ base for frame, base in pairs],
                "difference": [folded_difference(frame, base) for frame, base in pairs],
            }
        for frame, base in zip(frames, bases or [None] * len(frames), strict=True):
            require_undone(frame, base)
        rows = []
        for name, words in transforms.items():
            split = [planes(one) for one in words]
            for at, which in enumerate(("high", "low")):
                pieces = [pair[at] for pair in split]
                rows += [row(f"{name}, {which} bytes", pieces, how, by, rounds) for how, by in compressors()]
        header = ("plane", "by", "ratio", "bits a byte", "MB/s in", "MB/s out")
        yield f"## {sample.name} ({sample.size / MB:.0f} MB)\n\n{markdown_table(header, rows)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="a checkpoint in bf16")
    parser.add_argument("--fine-tune", type=Path, metavar="DIR", help="a checkpoint tuned from it")
    parser.add_argument("--bytes", type=int, default=128 * MB, metavar="N", help="of each sample (128,000,000)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="the best of these counts (3)")
    options = parser.parse_args(arguments)
    find_rblstore()
    samples = checkpoint_samples(options.base, options.fine_tune, options.bytes)
    for table in tables([sample for sample in samples if sample.name.startswith("BF16")], options.rounds):
        print(table)


if __name__ == "__main__":
    main()
