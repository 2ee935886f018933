"""Writes a golden repository: small, complete, the same on every machine; every later version must open it for ever.

Run it once a release, and never again for a version that is out:

    python tests/golden/make_repository.py tests/golden/0.1.0

It holds two identities on two branches (one in two shards, with every element type), three adapters, statements, a tag,
a deleted branch, an operation undone, a probe, baselines and verifications, raw and zstd frames and a content of two
frames. Inputs, author and times are fixed, so today's code must give the same object ids; how well zstd compresses is
its own business. Evidence is put together by hand: its numbers mean nothing, its shape is what counts.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import struct
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import rblstore
from rblstore import repository
from rblstore import transaction as publishing
from rblstore.objects.dtypes import BITS, span_bytes
from rblstore.objects.evidence_records import (
    Baseline,
    Probe,
    Prompt,
    PromptDivergence,
    PromptOutput,
    Verification,
)
from rblstore.objects.ids import BaselineId, CommitId, CompositionId, ProbeId
from rblstore.operations import commit, evidence_time, revert, tag
from rblstore.repository import PROBES, SYMBOLIC, Store

AUTHOR = "Ada Lovelace <ada@example.org>"
WIDTH = 8
VOCABULARY = 16
ENVIRONMENT = {"device": "cpu", "dtype": "float32", "threads": "1", "torch": "2.13.0"}
CHECKOUTS = ("main", "main~1", "v1", "main~4", "second", "second~1")


class Tensor(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def noise(name: str, size: int) -> bytes:
    """Bytes that depend on a name alone, on every machine and in every version of Python."""
    return hashlib.shake_256(name.encode()).digest(size)


def floats(name: str, *shape: int) -> Tensor:
    """F32 values from -1 to 1."""
    drawn = struct.unpack(f"<{math.prod(shape)}h", noise(name, 2 * math.prod(shape)))
    return Tensor("F32", shape, struct.pack(f"<{len(drawn)}f", *(value / 32768 for value in drawn)))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values()))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def base_tensors(name: str) -> dict[str, Tensor]:
    """What both identities have, with values of their own."""
    names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 1) for part in ("q", "v")]
    tensors = {"model.embed_tokens.weight": floats(f"{name} embedding", VOCABULARY, WIDTH)}
    tensors |= {key: floats(f"{name} {key}", WIDTH, WIDTH) for key in names}
    return tensors


def write_first(folder: Path) -> Path:
    """An identity in one file, with a card and a file in a folder of its own."""
    (folder / "extra").mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", base_tensors("first"))
    write_json(folder / "config.json", {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ndatasets:\n- letters\n---\n\n# First\n", "utf-8")
    (folder / "extra" / "notes – élan.txt").write_bytes(noise("notes", 100))
    (folder / "empty").write_bytes(b"")
    return folder


def write_second(folder: Path) -> Path:
    """An identity in two shards: every element type, a scalar, an empty tensor, one of two frames, one stored twice."""
    folder.mkdir(parents=True)
    tensors = base_tensors("second")
    types = {f"types.{dtype}": Tensor(dtype, (4, 4), noise(dtype, span_bytes(dtype, (4, 4)))) for dtype in BITS}
    types["scalar"] = floats("scalar")
    types["none"] = Tensor("BF16", (0, 3), b"")
    types["tied.weight"] = tensors["model.embed_tokens.weight"]
    types["zeros"] = Tensor("U8", (9 << 20,), bytes(9 << 20))
    shards = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": types}
    for name, shard in shards.items():
        write_safetensors(folder / name, shard)
    index = {key: name for name, shard in shards.items() for key in shard}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})
    write_json(folder / "config.json", {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH})
    return folder


def write_adapter(folder: Path, part: str, **config: Any) -> Path:
    """A LoRA adapter on one projection of every layer."""
    folder.mkdir(parents=True)
    name, rank = folder.name, 2
    tensors = {}
    for layer in (0, 1):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.{part}_proj"
        tensors[f"{prefix}.lora_A.weight"] = floats(f"{name} A {layer}", rank, WIDTH)
        tensors[f"{prefix}.lora_B.weight"] = floats(f"{name} B {layer}", WIDTH, rank)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    usual = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "bias": "none"}
    write_json(folder / "adapter_config.json", {**usual, "target_modules": [f"{part}_proj"], **config})
    return folder


@contextmanager
def fixed_clock() -> Iterator[None]:
    """Every look at the clock is a minute later than the one before, from a fixed day on."""
    looks = iter(range(60 * 24))

    def now() -> str:
        minute = next(looks)
        return f"2026-03-01T{minute // 60:02}:{minute % 60:02}:00Z"

    # Whoever needs the time has taken the function into its own module.
    with ExitStack() as stack:
        for module in (commit, evidence_time, publishing, repository, revert, tag):
            stack.enter_context(mock.patch.object(module, "utc_now", now))
        yield


def add_probe(store: Store) -> ProbeId:
    """A probe of token ids, marked default."""
    probe = Probe((Prompt("p0", (1, 5, 9), "Good day"), Prompt("p1", (3,), None)), ((0,), (1,)), "last", None)
    with store.transaction(AUTHOR) as transaction:
        probe_id = transaction.add_record(probe)
        transaction.set_ref(f"{PROBES}two", None, probe_id)
        transaction.set_ref("PROBE", None, f"{SYMBOLIC}{PROBES}two")
        transaction.describe("probe: two")
    return ProbeId(probe_id)


def add_baseline(store: Store, composition: CompositionId, probe: ProbeId, name: str) -> BaselineId:
    """Outputs of a composition: noise in the place of logits."""
    with store.transaction(AUTHOR) as transaction:
        outputs = []
        for prompt in ("p0", "p1"):
            added = transaction.add_content([floats(f"{name} {prompt}", VOCABULARY).data], element_width=4)
            outputs.append(PromptOutput(prompt, (1, VOCABULARY), added.content))
        record = Baseline(
            composition, probe, ENVIRONMENT, "logits", "F32", tuple(outputs), AUTHOR, "2026-03-02T08:00:00+01:00"
        )
        return BaselineId(transaction.add_record(record))


def add_verification(
    store: Store,
    about: CommitId | None,
    composition: CompositionId,
    adapted: CompositionId,
    probe: ProbeId,
    outputs: BaselineId,
) -> None:
    """Evidence about a commit that took out ``brief`` (exact), or about none (diverged)."""
    exact = about is not None
    divergence = 0.0 if exact else 1.5e-3
    record = Verification(
        commit=about,
        composition=composition,
        adapted=adapted,
        removed=("brief",),
        probe=probe,
        baseline=outputs,
        environment=ENVIRONMENT,
        verdict="exact" if exact else "diverged",
        tolerance=1e-6,
        bit_equal=exact,
        kl=divergence,
        js=divergence / 4,
        rf=1.0 - divergence / 0.08,
        kl_adapted=0.08,
        js_adapted=0.02,
        reason=None,
        prompts=tuple(PromptDivergence(name, divergence, divergence / 4, exact) for name in ("p0", "p1")),
        author=AUTHOR,
        time="2026-03-02T08:05:00.5Z",
    )
    with store.transaction(AUTHOR) as transaction:
        transaction.add_record(record)


def write_repository(root: Path, sources: Path) -> None:
    """Writes the repository.

    Args:
        root: The folder that will hold ``.rbl``.
        sources: A folder for the checkpoints and adapters that go into it.
    """
    first, second = write_first(sources / "first"), write_second(sources / "second")
    polite = write_adapter(sources / "polite", "q")
    brief = write_adapter(sources / "brief", "v", use_rslora=True, base_model_name_or_path="elsewhere/first")
    other = write_adapter(sources / "other", "q")
    (polite / "README.md").write_text("---\nlicense: mit\nbase_model: first\n---\n", "utf-8")
    by = {"author": AUTHOR}
    with fixed_clock(), rblstore.init(root) as repo:
        store = repo._store
        base = repo.commit("base\n\nThe longer story: ünïcode.", identity=first, meta={"team": "one"}, **by)
        probe = add_probe(store)
        with_polite = repo.commit("polite", behaviors={"polite": polite}, **by)
        repo.create_tag("v1", message="first", **by)
        outputs = add_baseline(store, with_polite.composition, probe, "polite")
        both = repo.commit("brief", behaviors={"brief": brief}, weights={"brief": 0.5}, license="mit", **by)
        add_verification(store, None, with_polite.composition, both.composition, probe, outputs)
        gone = repo.commit("Revert brief", remove=["brief"], **by)
        add_verification(store, gone.commit, gone.composition, both.composition, probe, outputs)
        repo.create_branch("mistake", base.commit, **by)
        repo.undo(**by)
        repo.create_branch("short-lived", **by)
        repo.delete_branch("short-lived", **by)
        repo.switch("second", orphan=True, **by)
        repo.commit("second base\n\n" + "So long a story is compressed. " * 200, identity=second, **by)
        repo.commit("other", behaviors={"other": other}, **by)
        repo.switch("main", **by)
        repo.commit("polite, quieter", weights={"polite": 0.25}, **by)


def history(root: Path, scratch: Path, checkouts: Iterable[str] = CHECKOUTS) -> dict[str, Any]:
    """What a repository says, in terms that no version may change; docs/format.md is their definition.

    Args:
        root: The folder that holds ``.rbl``.
        scratch: A folder that does not exist yet, for checkouts.
        checkouts: Revisions to check out.
    """
    scratch.mkdir()
    with rblstore.open(root) as repo:
        with repo._store.catalog.read() as reader:
            records = {str(record_id): kind for record_id, kind in reader.records()}
            contents = sorted({
                str(location.content)
                for pack in reader.packs()
                if pack.kind == "C"
                for location in reader.contents_of_pack(pack.pack)
            })  # fmt: skip
            refs = reader.refs("")
        return {
            "head": repo.head,
            "branch": repo.branch,
            "log": [
                {
                    "commit": entry.commit,
                    "parents": list(entry.parents),
                    "composition": entry.composition,
                    "identity": entry.identity,
                    "slots": [[slot.name, slot.behavior, slot.weight] for slot in entry.slots],
                    "message": entry.message,
                    "author": entry.author,
                    "time": entry.time,
                    "refs": list(entry.refs),
                    "verdicts": [one.verdict for one in entry.verifications],
                }
                for entry in repo.log(all=True)
            ],
            "refs": refs,
            "operations": [[one.id, one.description, one.undone] for one in repo.operations()],
            "records": dict(sorted(records.items())),
            "contents": contents,
            "checkouts": {
                revision: _checked_out(repo, revision, scratch / str(number))
                for number, revision in enumerate(checkouts)
            },
        }


def _checked_out(repo: rblstore.Repository, revision: str, folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkout but its manifest, which is no file of the model."""
    repo.checkout(revision, folder)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "rbl-composition.json"
    }


def archive(root: Path) -> bytes:
    """A repository's folder as a tar file that is the same wherever it is made."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        # The stat cache is about the inputs' files, which nobody will see again.
        for path in sorted(path for path in root.rglob("*") if path.name != "stat-cache"):
            member = tarfile.TarInfo(path.relative_to(root).as_posix())
            member.type = tarfile.DIRTYPE if path.is_dir() else tarfile.REGTYPE
            member.mode = path.stat().st_mode & 0o777
            member.size = 0 if path.is_dir() else path.stat().st_size
            tar.addfile(member, None if path.is_dir() else io.BytesIO(path.read_bytes()))
    return gzip.compress(inner.getvalue(), mtime=0)


def unpack(version: Path, root: Path) -> Path:
    """Puts the golden repository of a version into a new folder, and returns that."""
    root.mkdir()
    with tarfile.open(version / "repository.tar.gz") as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(root, filter="data")
        else:
            tar.extractall(root)
    return root


def main() -> None:
    """Writes the archive and what it must say into the folder that is named."""
    version = Path(sys.argv[1])
    version.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_repository(folder / "store", folder / "sources")
        data = archive(folder / "store")
        (version / "repository.tar.gz").write_bytes(data)
        write_json(version / "expected.json", history(folder / "store", folder / "out"))
    print(f"{version}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
