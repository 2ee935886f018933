"""Writes the golden repository of tensors in planes and as differences; every later version must open it for ever.

    python tests/golden/make_codecs_repository.py tests/golden/0.1.0-codecs

It holds an identity, a fine-tune of it as an overlay, and that overlay's second generation: every codec, every
transform, widths of 1, 2, 4 and 8 bytes, a content of several frames as planes and as a difference, a base with fewer
rows and with more; and elements that arithmetic would change (NaN payloads, -0.0, denormals, infinities). As with the
repository of make_repository.py, today's code must give the same ids from the same inputs; how small frames are is its
own business.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

from make_repository import AUTHOR, Tensor, archive, fixed_clock, history, noise, write_json, write_safetensors

import rblstore

CHECKOUTS = ("HEAD", "HEAD~1", "HEAD~2", "tuned")
ROWS, WIDTH = 64, 32
COUNT = ROWS * WIDTH
# More than a frame, of which almost all is zero.
LARGE = (8 << 20) + 1024
# Quiet and signalling NaN with payloads, zeros of both signs, denormals, infinities: bf16.
SPECIAL = (0x7FC1, 0x7F81, 0xFFFF, 0x8000, 0x0000, 0x0001, 0x807F, 0x7F80, 0xFF80, 0x3F80)


def bell(name: str, count: int) -> list[int]:
    """Bits of F32 numbers about zero, the small ones more often."""
    parts = struct.unpack(f"<{4 * count}h", noise(name, 8 * count))
    sums = [sum(parts[at : at + 4]) / (1 << 20) for at in range(0, 4 * count, 4)]
    return list(struct.unpack(f"<{count}I", struct.pack(f"<{count}f", *sums)))


def tensor(dtype: str, shape: tuple[int, ...], width: int, values: list[int]) -> Tensor:
    """A tensor of elements given by their bits."""
    return Tensor(dtype, shape, b"".join((value % (1 << 8 * width)).to_bytes(width, "little") for value in values))


def bits(of: Tensor, width: int) -> list[int]:
    """The bits of a tensor's elements."""
    return [int.from_bytes(of.data[at : at + width], "little") for at in range(0, len(of.data), width)]


def base_tensors() -> dict[str, Tensor]:
    """What the identity has."""
    embedding = [value >> 16 for value in bell("embedding", COUNT)]
    wide = [value << 32 | value for value in bell("wide", 512)]
    return {
        "model.embed_tokens.weight": tensor("BF16", (ROWS, WIDTH), 2, embedding),
        "stepped.weight": tensor("BF16", (ROWS, WIDTH), 2, [value >> 16 for value in bell("stepped", COUNT)]),
        "negated.weight": tensor("F32", (COUNT // 2,), 4, bell("negated", COUNT // 2)),
        "special.weight": tensor("BF16", (COUNT,), 2, [SPECIAL[byte % 10] for byte in noise("special", COUNT)]),
        "positions": tensor("I64", (512,), 8, list(range(512))),
        "wide.weight": tensor("F64", (512,), 8, wide),
        "counts": tensor("U8", (COUNT,), 1, [byte % 5 for byte in noise("counts", COUNT)]),
        "noise": Tensor("I8", (1000,), noise("noise", 1000)),
        "large": Tensor("F16", (LARGE // 2,), noise("large", 64) + bytes(LARGE - 64)),
        "none": Tensor("F32", (0, 4), b""),
        "model.norm.weight": tensor("F32", (WIDTH,), 4, bell("norm", WIDTH)),
    }


def tuned(before: dict[str, Tensor], name: str, rows: int) -> dict[str, Tensor]:
    """What training made of it: steps, signs, one element, and rows that were added or taken away."""
    drawn = noise(f"{name} steps", COUNT)
    after = dict(before)
    added = [value >> 16 for value in bell(f"{name} rows", max(0, rows - ROWS) * WIDTH)]
    embedding = bits(before["model.embed_tokens.weight"], 2)[: rows * WIDTH] + added
    after["model.embed_tokens.weight"] = tensor("BF16", (rows, WIDTH), 2, embedding)
    after["stepped.weight"] = tensor(
        "BF16",
        (ROWS, WIDTH),
        2,
        [value + byte % 5 - 2 for value, byte in zip(bits(before["stepped.weight"], 2), drawn, strict=True)],
    )
    after["negated.weight"] = tensor(
        "F32",
        (COUNT // 2,),
        4,
        [value ^ (byte & 1) << 31 for value, byte in zip(bits(before["negated.weight"], 4), drawn, strict=False)],
    )
    special = [SPECIAL[byte % 10] for byte in noise(f"{name} special", 40)]
    after["special.weight"] = tensor("BF16", (COUNT,), 2, special + bits(before["special.weight"], 2)[40:])
    after["wide.weight"] = tensor("F64", (512,), 8, [value + 3 for value in bits(before["wide.weight"], 8)])
    after["counts"] = tensor("U8", (COUNT,), 1, [value + 1 for value in bits(before["counts"], 1)])
    large = bytearray(before["large"].data)
    large[LARGE // 2], large[-2] = drawn[0], drawn[1]
    after["large"] = before["large"]._replace(data=bytes(large))
    return after


def write_checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint of one file."""
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors)
    rows = tensors["model.embed_tokens.weight"].shape[0]
    write_json(folder / "config.json", {"model_type": "llama", "vocab_size": rows, "hidden_size": WIDTH})
    (folder / "notes.txt").write_text("again and again, " * 40, "utf-8")
    return folder


def write_codecs_repository(root: Path, sources: Path) -> None:
    """Writes the repository.

    Args:
        root: The folder that will hold ``.rbl``.
        sources: A folder for the checkpoints that go into it.
    """
    before = base_tensors()
    first = tuned(before, "first", ROWS + 5)
    base = write_checkpoint(sources / "base", before)
    by = {"author": AUTHOR}
    with fixed_clock(), rblstore.init(root) as repo:
        repo.commit("base", identity=base, **by)
        repo.commit("tuned", behaviors={"polite": write_checkpoint(sources / "first", first)}, **by)
        repo.create_branch("tuned", **by)
        again = tuned(first, "second", ROWS - 3)
        repo.commit("tuned again", behaviors={"polite": write_checkpoint(sources / "second", again)}, **by)


def main() -> None:
    """Writes the archive and what it must say into the folder that is named."""
    version = Path(sys.argv[1])
    version.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_codecs_repository(folder / "store", folder / "sources")
        data = archive(folder / "store")
        (version / "repository.tar.gz").write_bytes(data)
        write_json(version / "expected.json", history(folder / "store", folder / "out", CHECKOUTS))
    print(f"{version}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
