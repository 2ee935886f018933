"""Writes the test vectors of docs/format.md from the records of one small, complete example.

Run it after a change to the examples; a change to the *encoding* of version 1 is a defect, and the tests say so:

    python tests/golden/make_vectors.py
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import xxhash

from rblstore.checkpoints.checkout_layout import (
    CheckoutFile,
    CheckoutManifest,
    CheckoutSlot,
    behavior_folder,
    plan_checkout,
)
from rblstore.objects.content_records import (
    Behavior,
    Effect,
    FileEntry,
    FileManifest,
    Ground,
    Identity,
    NamedTensor,
    StoredTensor,
    tensor_root,
)
from rblstore.objects.evidence_records import (
    Baseline,
    Claim,
    Probe,
    Prompt,
    PromptDivergence,
    PromptOutput,
    Statement,
    Verification,
)
from rblstore.objects.history_records import Commit, Composition, Operation, RefChange, Slot, Tag
from rblstore.objects.ids import (
    BaselineId,
    BehaviorId,
    CommitId,
    CompositionId,
    ContentId,
    FileManifestId,
    IdentityId,
    ProbeId,
    RecordId,
)
from rblstore.objects.record import Record
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import PromptMeasures, Study, StudyPoint
from rblstore.objects.tombstone_records import Tombstone
from rblstore.objects.training_records import TrainingState
from rblstore.storage.refs_log import encode_line

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
AUTHOR = "Ada Lovelace <ada@example.org>"


def sha256(data: bytes) -> ContentId:
    return ContentId(hashlib.sha256(data).hexdigest())


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def safetensors(tensors: dict[str, tuple[list[int], bytes]]) -> tuple[bytes, FileManifest, bytes]:
    """The header content (length included), the manifest and the whole file."""
    offset, entries, named, data = 0, {}, [], b""
    for name, (shape, raw) in tensors.items():
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        named.append(NamedTensor(name, StoredTensor("F32", tuple(shape), sha256(raw))))
        offset, data = offset + len(raw), data + raw
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, FileManifest(sha256(header), tuple(named)), header + data


def entry(path: str, data: bytes, manifest: FileManifest | None = None) -> FileEntry:
    named = None if manifest is None else FileManifestId(FileManifest.id_of(manifest.encode()))
    return FileEntry(path, sha256(data), len(data), named)


BIAS, WEIGHT = floats(0.5, -0.5), floats(1.0, 2.0, 3.0, 4.0)
CONFIG = b'{"model_type":"example"}\n'
HEADER, MANIFEST, WEIGHTS = safetensors({"linear.bias": ([2], BIAS), "linear.weight": ([2, 2], WEIGHT)})
LINEAR_BIAS, LINEAR_WEIGHT = (named.tensor for named in MANIFEST.tensors)
ROOT_LINES = [
    json.dumps([named.name, named.tensor.dtype, list(named.tensor.shape), named.tensor.content], separators=(",", ":"))
    for named in MANIFEST.tensors
]


def example_records() -> tuple[Record, ...]:
    """One record of each kind of version 1, each referring to those before it."""
    root = tensor_root((named.name, named.tensor) for named in MANIFEST.tensors)
    identity = Identity((entry("config.json", CONFIG), entry("model.safetensors", WEIGHTS, MANIFEST)), root)
    _, lora_manifest, lora = safetensors({
        "base_model.model.linear.base_layer.bias": ([2], floats(0.75, -0.5)),
        "base_model.model.linear.lora_A.weight": ([1, 2], floats(1.0, 0.0)),
        "base_model.model.linear.lora_B.weight": ([2, 1], floats(0.25, 0.25)),
    })  # fmt: skip
    lora_config = b'{"bias":"all","peft_type":"LORA","r":1,"target_modules":["linear"]}\n'
    trained_bias = lora_manifest.tensors[0].tensor
    behavior = Behavior(
        "adapter",
        (entry("adapter_config.json", lora_config), entry("adapter_model.safetensors", lora, lora_manifest)),
        (
            Effect(
                "tensor",
                "linear.bias",
                "replaces",
                Ground.tensor("linear.bias", LINEAR_BIAS),
                Ground.tensor("linear.bias", trained_bias),
            ),
            Effect("tensor", "linear.weight", "modifies", Ground.tensor("linear.weight", LINEAR_WEIGHT), None),
        ),
        (Ground("file", "config.json", sha256(CONFIG)),),
    )
    identity_id = IdentityId(Identity.id_of(identity.encode()))
    behavior_id = BehaviorId(Behavior.id_of(behavior.encode()))
    adapted = Composition(identity_id, (Slot("polite", behavior_id),))
    adapted_id = CompositionId(Composition.id_of(adapted.encode()))
    base_id = CompositionId(Composition.id_of(Composition(identity_id).encode()))
    commit = Commit(adapted_id, (), AUTHOR, "2026-03-01T12:00:00Z", "polite\n\nSays please.")
    commit_id = CommitId(Commit.id_of(commit.encode()))
    tag = Tag("v1", commit_id, AUTHOR, "2026-03-01T12:01:00Z", "")
    operation = Operation(
        1,
        None,
        "commit: polite",
        (RefChange("HEAD", None, "ref: refs/heads/main"), RefChange("refs/heads/main", None, str(commit_id))),
        None,
        AUTHOR,
        "2026-03-01T12:00:00.250Z",
    )
    statement = Statement(
        RecordId(identity_id),
        (Claim("license", "apache-2.0", "README.md"), Claim("meta.team", "façade", "command line")),
        AUTHOR,
        "2026-03-01T12:00:00Z",
    )
    probe = Probe((Prompt("p0", (1, 0), "Good day"), Prompt("p1", (3,), None)), ((0,), (1,)), "last", sha256(CONFIG))
    probe_id = ProbeId(Probe.id_of(probe.encode()))
    environment = {"device": "cpu", "dtype": "float32", "threads": "1", "torch": "2.13.0"}
    baseline = Baseline(
        base_id,
        probe_id,
        environment,
        "logits",
        "F32",
        (
            PromptOutput("p0", (1, 4), sha256(floats(0.0, 1.0, 2.0, 3.0))),
            PromptOutput("p1", (1, 4), sha256(floats(3.0, 2.0, 1.0, 0.0))),
        ),
        AUTHOR,
        "2026-03-01T12:05:00+01:00",
    )
    verification = Verification(
        commit=None,
        composition=base_id,
        adapted=adapted_id,
        removed=("polite",),
        probe=probe_id,
        baseline=BaselineId(Baseline.id_of(baseline.encode())),
        environment=environment,
        verdict="within_tolerance",
        tolerance=1e-6,
        bit_equal=False,
        kl=1.5e-9,
        js=3.5e-10,
        rf=0.99999998125,
        kl_adapted=0.08,
        js_adapted=0.02,
        reason=None,
        prompts=(PromptDivergence("p0", 0.0, 0.0, True), PromptDivergence("p1", 3e-9, 7e-10, False)),
        author=AUTHOR,
        time="2026-03-01T12:06:00Z",
    )
    state = b'{"rblstore_state":1,"tree":["dict","exp_avg",["tensor","exp_avg"],"lr",["float","0.001"]]}'
    _, state_manifest, moments = safetensors({"exp_avg": ([2], floats(0.125, -0.25))})
    training_state = TrainingState(
        commit_id,
        (entry("state.json", state), entry("state.safetensors", moments, state_manifest)),
        100,
        {"python": "3.12.3", "torch": "2.13.0"},
        AUTHOR,
        "2026-03-01T12:07:00Z",
    )
    half = StudyPoint(
        {"epsilon": 0.5},
        None,
        False,
        {"kl_adapted": 0.08, "rf": 0.75},
        None,
        (PromptMeasures("p0", {"js": 0.004, "kl": 0.015}), PromptMeasures("p1", {"js": 0.008, "kl": 0.025})),
    )
    study = Study(
        "elimination",
        (commit_id,),
        (probe_id,),
        {"behavior": "polite", "epsilons": [0.5]},
        {"device": "cpu", "dtype": "float32", "threads": "1", "torch": "2.13.0"},
        (half,),
        AUTHOR,
        "2026-03-01T12:08:00Z",
    )
    signature = Signature(
        commit_id,
        "key",
        sha256(b"the DER form of a public key"),
        None,
        "application/vnd.in-toto+json",
        sha256(b"a sigstore bundle"),
        AUTHOR,
        "2026-03-01T12:09:00Z",
    )
    tombstone = Tombstone(behavior_id, "Asked for by the data's owner.", AUTHOR, "2026-03-01T12:10:00Z")
    return (
        MANIFEST, identity, behavior, adapted, commit, tag, operation, statement, probe, baseline, verification,
        training_state, study, signature, tombstone,
    )  # fmt: skip


def vector_block(record: Record) -> str:
    data = record.encode()
    return f"```vector\n{data.decode()}\n```\n\nid `{record.id_of(data)}`"


def root_block() -> str:
    digest = hashlib.sha256("".join(line + "\n" for line in ROOT_LINES).encode()).hexdigest()
    return "```tensor-root\n" + "\n".join(ROOT_LINES) + f"\n```\n\ntensor root `{digest}`"


def file_block() -> str:
    rows = [
        ('`config.json`: `{"model_type":"example"}` and a newline', CONFIG.hex(" ", -8), CONFIG),
        ("header content of `model.safetensors`", HEADER.hex(" ", -8), HEADER),
        ("`linear.bias`, F32 [2]: 0.5, -0.5", BIAS.hex(" ", -8), BIAS),
        ("`linear.weight`, F32 [2, 2]: 1, 2, 3, 4", WEIGHT.hex(" ", -8), WEIGHT),
    ]
    lines = ["| content | bytes | id |", "|---|---|---|"]
    lines += [f"| {name} | `{text}` | `{sha256(data)}` |" for name, text, data in rows]
    lines.append(f"| `model.safetensors`, the last three in this order | {len(WEIGHTS)} bytes | `{sha256(WEIGHTS)}` |")
    return "\n".join(lines)


def log_block(operation: Operation) -> str:
    return f"```refs-log\n{encode_line(operation, None).decode()}```"


def run_of(byte: int, count: int) -> bytes:
    """A zstd frame of one byte, up to 255 times: magic, single segment, content size, one last block of a run."""
    return b"\x28\xb5\x2f\xfd\x20" + bytes([count]) + (count << 3 | 0b011).to_bytes(3, "little") + bytes([byte])


def codec_frame(
    codec: str, width: int, transform: int, raw: bytes, planes: list[bytes], base: bytes | None = None
) -> str:
    """A frame of the page, put together by the page's own rules and not by the code that it describes."""
    parameters = struct.pack("<BB6xQ", width, transform, xxhash.xxh3_64_intdigest(raw))
    stored = struct.pack(f"<{width}I", *map(len, planes)) + b"".join(planes)
    lines = [f"codec {codec}", f"parameters {parameters.hex(' ', -8)}"]
    lines += [] if base is None else [f"base {base.hex(' ', -8)}"]
    lines += [f"stored {stored.hex(' ', -8)}", f"raw {raw.hex(' ', -8)}"]
    return "```codec\n" + "\n".join(lines) + "\n```"


def codecs_block() -> str:
    # 1 and -1.5 in bf16, by turns: rotated, the sign is the lowest bit and all have one high byte.
    rotated = struct.pack("<2H", 0x3F80, 0xBFC0) * 16
    # A step up, two down; then what the base has no more of: 5 and -5.
    before = [1000 + at for at in range(20)]
    after = [value + (1, -2)[at % 2] for at, value in enumerate(before)] + [5, -5, 5, -5]
    folded = bytes([2, 3] * 10 + [10, 9] * 2)
    bytes_before = bytes(range(200, 224))
    return "\n\n".join((
        codec_frame("planes", 2, 1, rotated, [run_of(0x7F, 32), bytes.fromhex("0081") * 16]),
        codec_frame(
            "delta", 4, 3, struct.pack("<24i", *after), [run_of(0, 24)] * 3 + [folded], struct.pack("<20i", *before)
        ),
        codec_frame("delta", 1, 2, bytes(byte ^ 0x83 for byte in bytes_before), [run_of(0x83, 24)], bytes_before),
    ))  # fmt: skip


def checkout_block(commit: Record, composition: Composition, identity: Identity, behavior: Behavior) -> str:
    slots = [(slot.name, slot.weight, behavior) for slot in composition.slots]
    files = [(entry.path, entry) for entry in identity.files]
    planned = [
        (file.path, file.source)
        for file in plan_checkout(files, slots, "adapters")
        if isinstance(file.source, FileEntry)
    ]
    manifest = CheckoutManifest(
        "adapters",
        CommitId(commit.id_of(commit.encode())),
        CompositionId(composition.id_of(composition.encode())),
        composition.identity,
        tuple(
            CheckoutSlot(slot.name, slot.behavior, slot.weight, behavior_folder(slot.name))
            for slot in composition.slots
        ),
        tuple(CheckoutFile(path, entry.sha256, entry.size) for path, entry in planned),
    )
    return f"```json\n{manifest.encode().decode()}```"


def filled_page(page: str) -> str:
    """The page with every block between its markers made anew."""
    _, identity, behavior, composition, commit, _, operation, *_ = records = example_records()
    blocks = {record.KIND: vector_block(record) for record in records}
    blocks |= {"tensor-root": root_block(), "contents": file_block(), "codecs": codecs_block()}
    assert isinstance(operation, Operation)
    assert isinstance(identity, Identity)
    assert isinstance(behavior, Behavior)
    assert isinstance(composition, Composition)
    blocks |= {"refs-log": log_block(operation), "checkout": checkout_block(commit, composition, identity, behavior)}

    def block(match: re.Match[str]) -> str:
        return f"<!-- vector: {match[1]} -->\n\n{blocks.pop(match[1])}\n\n<!-- end -->"

    filled = re.sub(r"<!-- vector: ([a-z-]+) -->.*?<!-- end -->", block, page, flags=re.DOTALL)
    if blocks:
        raise SystemExit(f"docs/format.md has no place for {', '.join(blocks)}")
    return filled


if __name__ == "__main__":
    FORMAT.write_text(filled_page(FORMAT.read_text("utf-8")), "utf-8")
