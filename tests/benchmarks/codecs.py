"""How small tensors become and how fast, by element type and codec; and how fast they come back.

    python tests/benchmarks/codecs.py --base BASE --fine-tune TUNED --out docs/benchmarks/codecs.json

Without checkpoints, on seeded weights alone. Every frame is decoded and compared with what went in. Blosc2 is measured
where it is installed. Nothing imports this module by its name, which is the standard library's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec_samples import Sample, checkpoint_samples, seeded_samples
from figures import MB, digits, markdown_table, median
from machine import PACKAGES, machine, package_versions
from measuring import find_rblstore

Frame = Any


@dataclass(frozen=True)
class Codec:
    """One way of storing a frame.

    Attributes:
        name: How tables call it.
        encode: (frame, base or None, bytes an element, threads) to what is stored.
        decode: (what is stored, base or None, room of the frame's length, threads) to the frame.
        size: Bytes of what is stored.
        differs: Whether it needs a base.
        own_threads: Whether it divides one frame among threads itself; else each thread takes frames of its own.
        kind: What was chosen for a frame, where the codec chooses.
    """

    name: str
    encode: Callable[[bytes, bytes | None, int, int], Frame]
    decode: Callable[[Frame, bytes | None, bytearray, int], Any]
    size: Callable[[Frame], int] = len
    differs: bool = False
    own_threads: bool = False
    kind: Callable[[Frame], str | None] = lambda _: None


def _xor(a: Any, b: Any) -> bytes:
    import numpy as np

    return np.bitwise_xor(np.frombuffer(a, "u1"), np.frombuffer(b, "u1")).tobytes()


def zstd_codecs(levels: Sequence[int]) -> Iterator[Codec]:
    """zstd on the bytes as they are, and on their difference from the base."""
    import zstandard

    for level in levels:

        def encode(frame: bytes, base: bytes | None, width: int, threads: int, level: int = level) -> bytes:
            return zstandard.ZstdCompressor(level=level).compress(frame)

        def decode(stored: bytes, base: bytes | None, room: bytearray, threads: int) -> bytes:
            return zstandard.ZstdDecompressor().decompress(stored)

        def encode_over(frame: bytes, base: bytes | None, width: int, threads: int, level: int = level) -> bytes:
            return zstandard.ZstdCompressor(level=level).compress(_xor(frame, base))

        def decode_over(stored: bytes, base: bytes | None, room: bytearray, threads: int) -> bytes:
            return _xor(zstandard.ZstdDecompressor().decompress(stored), base)

        yield Codec(f"zstd -{level}", encode, decode)
        yield Codec(f"XOR, zstd -{level}", encode_over, decode_over, differs=True)


def blosc_codecs() -> Iterator[Codec]:
    """Blosc2: bytes of like significance together, then zstd 1, on the bytes and on their difference from the base."""
    try:
        import blosc2
    except ImportError:
        print("skipped: Blosc2 is not installed (pip install blosc2)", file=sys.stderr)
        return

    def encode(frame: bytes, base: bytes | None, width: int, threads: int) -> Frame:
        return blosc2.compress2(
            frame, codec=blosc2.Codec.ZSTD, clevel=1, typesize=width, nthreads=threads,
            filters=[blosc2.Filter.SHUFFLE], filters_meta=[0],
        )  # fmt: skip

    def decode(stored: Frame, base: bytes | None, room: bytearray, threads: int) -> Any:
        blosc2.decompress2(stored, dst=room, nthreads=threads)
        return room

    def encode_over(frame: bytes, base: bytes | None, width: int, threads: int) -> Frame:
        return encode(_xor(frame, base), None, width, threads)

    def decode_over(stored: Frame, base: bytes | None, room: bytearray, threads: int) -> Any:
        return _xor(decode(stored, None, room, threads), base)

    yield Codec("Blosc2 shuffle, zstd 1", encode, decode, own_threads=True)
    yield Codec("XOR, Blosc2 shuffle, zstd 1", encode_over, decode_over, differs=True, own_threads=True)


def our_codecs() -> Iterator[Codec]:
    """rblstore's own, by policy: without the base, and with it where there is one."""
    from rblstore.storage.codecs import codec_name, decode_frame, encode_frame

    for policy in ("fast", "max"):

        def encode(frame: bytes, base: bytes | None, width: int, threads: int, policy: Any = policy) -> Frame:
            return encode_frame(frame, policy, element_width=width)

        def encode_over(frame: bytes, base: bytes | None, width: int, threads: int, policy: Any = policy) -> Frame:
            return encode_frame(frame, policy, element_width=width, base=base)

        def decode(stored: Frame, base: bytes | None, room: bytearray, threads: int) -> Any:
            out = memoryview(room)
            return decode_frame(stored.codec, stored.parameters, stored.data, len(room), base=base, out=out)

        def size(stored: Frame) -> int:
            return len(stored.data)

        def kind(stored: Frame) -> str:
            return codec_name(stored.codec)

        yield Codec(f"rblstore {policy}", encode, decode, size, kind=kind)
        yield Codec(f"rblstore {policy}, over the base", encode_over, decode, size, differs=True, kind=kind)


def one_pass(codec: Codec, sample: Sample, threads: int) -> tuple[float, float, list[Frame]]:
    """Encodes and decodes every frame once.

    Returns:
        Seconds of encoding, seconds of decoding, and what is stored.

    Raises:
        SystemExit: Something else came back.
    """
    bases: Sequence[bytes | None] = sample.bases or [None] * len(sample.frames)
    rooms = [bytearray(len(frame)) for frame in sample.frames]
    inside = threads if codec.own_threads else 1
    with ThreadPoolExecutor(1 if codec.own_threads else threads) as pool:
        list(pool.map(len, sample.frames))  # the threads are there when the clock starts
        start = time.perf_counter()
        stored = list(
            pool.map(lambda pair: codec.encode(*pair, sample.width, inside), zip(sample.frames, bases, strict=True))
        )
        encoded = time.perf_counter()
        back = list(pool.map(lambda three: codec.decode(*three, inside), zip(stored, bases, rooms, strict=True)))
        decoded = time.perf_counter()
    if any(bytes(found) != frame for found, frame in zip(back, sample.frames, strict=True)):
        raise SystemExit(f"{codec.name} does not give back what it was given: {sample.name}")
    return encoded - start, decoded - encoded, stored


def measure(sample: Sample, codecs: Sequence[Codec], threads: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A line a codec: what the sample becomes, and MB/s of raw data; codecs take turns in every round."""
    rows: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for codec in codecs:
            if codec.differs and sample.bases is None:
                continue
            for count in threads:
                encode, decode, stored = one_pass(codec, sample, count)
                if number == 0:  # the first pass of each only warms up
                    continue
                row = rows.setdefault(codec.name, {
                    "sample": sample.name,
                    "bytes": sample.size,
                    "codec": codec.name,
                    "ratio": round(sample.size / sum(map(codec.size, stored)), 4),
                    "chosen": sorted({name for name in map(codec.kind, stored) if name is not None}),
                    "encode_mb_s": {},
                    "decode_mb_s": {},
                })  # fmt: skip
                row["encode_mb_s"].setdefault(str(count), []).append(round(sample.size / MB / encode, 1))
                row["decode_mb_s"].setdefault(str(count), []).append(round(sample.size / MB / decode, 1))
    return list(rows.values())


def page(document: dict[str, Any], plots: Sequence[str]) -> str:
    """The page of a run, in Markdown."""
    on = document["machine"]
    header = ["codec", "ratio", "chosen"]
    header += [f"{way}, {count} thr." for way in ("encode", "decode") for count in document["threads"]]
    parts = [
        "# Codecs",
        f"Written by `tests/benchmarks/codecs.py`; every raw figure is in `{document['name']}.json`.",
        (
            f"{on['processor']}, {on['cores']} cores, {on['kernel']}. Medians of {document['rounds']} rounds; MB/s of "
            "raw data, from memory to memory, in frames of at most 8 MiB. Load average at the start: "
            f"{on['load_average'][0]}."
        ),
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".",
    ]
    for sample in dict.fromkeys(row["sample"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["sample"] == sample]
        lines = []
        for row in rows:
            speeds = [
                digits(median(row[way][str(count)]), 0)
                for way in ("encode_mb_s", "decode_mb_s")
                for count in document["threads"]
            ]
            lines.append((row["codec"], digits(row["ratio"], 3), ", ".join(row["chosen"]), *speeds))
        parts += [f"## {sample} ({digits(rows[0]['bytes'] / MB, 0)} MB)", markdown_table(header, lines)]
    parts += [f"![{plot}]({plot})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def write(document: dict[str, Any], out: Path) -> None:
    """Writes the document, its page and, where matplotlib is installed, its plots."""
    out.write_text(json.dumps(document, indent=1) + "\n")
    plots: list[str] = []
    try:
        from plots import plot_codecs
    except ImportError:
        print("matplotlib is not installed: no plots (pip install matplotlib)", file=sys.stderr)
    else:
        plots = [path.name for path in plot_codecs(document, out)]
    out.with_suffix(".md").write_text(page(document, plots))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", type=Path, metavar="DIR", help="a checkpoint; measured besides seeded weights")
    parser.add_argument("--fine-tune", type=Path, metavar="DIR", help="a checkpoint tuned from it")
    parser.add_argument("--bytes", type=int, default=64 * MB, metavar="N", help="of each sample (64,000,000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians are over these (5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="how many at once (1 2)")
    parser.add_argument("--zstd-levels", type=int, nargs="*", default=[1, 3, 9], metavar="L", help="(1 3 9)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the document; its page and plots go beside it")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing; draw a document's page and plots anew"
    )
    options = parser.parse_args(arguments)
    if options.render is not None:
        document, out = json.loads(options.render.read_text()), options.render
    elif options.out is None:
        parser.error("--out is needed, or --render")
    else:
        out = options.out
        find_rblstore()
        codecs = [*zstd_codecs(options.zstd_levels), *blosc_codecs(), *our_codecs()]
        document = {
            "benchmark": "codecs",
            "name": out.stem,
            "machine": machine(Path.cwd()),
            "versions": package_versions((*PACKAGES, "blosc2")),
            "rounds": options.rounds,
            "threads": options.threads,
            "rows": [],
        }
        samples = list(checkpoint_samples(options.base, options.fine_tune, options.bytes)) if options.base else []
        for sample in (*samples, *seeded_samples(options.bytes)):
            print(sample.name, file=sys.stderr, flush=True)
            document["rows"] += measure(sample, codecs, options.threads, options.rounds)
    write(document, out)
    print(out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
