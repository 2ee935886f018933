"""The rules of each kind of record: one breach at a time of the example of docs/format.md."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rblstore.errors import InputError
from rblstore.objects.canonical import record_body, record_bytes
from rblstore.objects.content_records import (
    Behavior,
    FileManifest,
    Ground,
    Identity,
    StoredTensor,
    tensor_root,
)
from rblstore.objects.evidence_records import Probe
from rblstore.objects.fields import Fields, check_text, check_time, require_sorted
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import ContentId, FileManifestId
from rblstore.objects.kinds import KINDS, parse_record

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
EXAMPLES = {
    text.split("/", 2)[1]: text.encode() for text in re.findall(r"```vector\n(.*?)\n```\n\nid `", PAGE, re.DOTALL)
}
ZEROS, ONES = "0" * 64, "1" * 64


def put(where: str, value: Any) -> Callable[[Any], None]:
    """A change that sets one member, named as in ``files.0.path``."""

    def change(body: Any) -> None:
        *steps, last = (int(step) if step.isdigit() else step for step in where.split("."))
        for step in steps:
            body = body[step]
        body[last] = value

    change.__name__ = f"{where}={str(value)[:30]}"
    return change


def do(where: str, deed: Callable[[list[Any]], Any]) -> Callable[[Any], None]:
    """A change of one array."""

    def change(body: Any) -> None:
        for step in where.split("."):
            body = body[int(step) if step.isdigit() else step]
        deed(body)

    change.__name__ = where
    return change


def twice(found: list[Any]) -> None:
    found.append(copy.deepcopy(found[-1]))


def backwards(found: list[Any]) -> None:
    found.reverse()


TENSOR = {"content": ZEROS, "dtype": "F32", "shape": [2]}

BREACHES: list[tuple[str, Callable[[Any], None], str]] = [
    ("file-manifest", do("tensors", twice), "repeated"),
    ("file-manifest", put("tensors.0.dtype", "F33"), "not known"),
    ("file-manifest", put("tensors.0.shape", [-1]), "array of integers"),
    ("file-manifest", put("tensors.0.shape", [1.5]), "array of integers"),
    ("file-manifest", put("tensors.0.shape", [True]), "array of integers"),
    ("file-manifest", put("tensors.0.shape", [2**52, 2**52]), "larger than"),
    ("file-manifest", put("tensors.0.shape", [1] * 65), "65 dimensions"),
    ("file-manifest", put("tensors.0.name", "a" * 1025), "1025 bytes"),
    ("file-manifest", put("tensors.0.name", "a\0"), "not text"),
    ("file-manifest", put("tensors.0.offset", 0), "not a known member"),
    ("file-manifest", put("header", ZEROS[1:]), "not an object id"),
    ("file-manifest", put("header", None), "not an object id"),
    ("identity", put("files", []), "array of 1 or more"),
    ("identity", put("files", None), "array of 1 or more"),
    ("identity", put("files.0", "config.json"), "not a JSON object"),
    ("identity", do("files", twice), "repeated or out of order"),
    ("identity", do("files", backwards), "repeated or out of order"),
    ("identity", put("files.0.path", "../config.json"), "dot component"),
    ("identity", put("files.0.path", ".rbl/config.toml"), "repository's own folder"),
    ("identity", put("files.0.path", "Model.safetensors"), "collides with"),
    ("identity", put("files.0.size", -1), "integer from 0"),
    ("identity", put("files.0.size", 1.5), "integer from 0"),
    ("identity", put("files.0.size", True), "integer from 0"),
    ("identity", put("files.0.manifest", 5), "not an object id"),
    ("behavior", put("form", "lora"), "none of adapter, overlay"),
    ("behavior", put("form", ["adapter"]), "none of adapter, overlay"),
    ("behavior", do("effects", backwards), "repeated or out of order"),
    ("behavior", do("effects", twice), "repeated or out of order"),
    ("behavior", do("ground", twice), "repeated or out of order"),
    ("behavior", put("effects.0.action", "adds"), "'adds' with ground"),
    ("behavior", put("effects.0.beneath", None), "'replaces' without ground"),
    ("behavior", put("effects.0.value", None), "'replaces' without a value"),
    ("behavior", put("effects.1.value", TENSOR), "'modifies' with a value"),
    ("behavior", put("effects.1.action", "removes"), "an adapter removes nothing"),
    ("behavior", put("effects.0.on", "file"), "not a known member"),
    ("behavior", put("effects.0.beneath.dtype", "F9"), "not known"),
    ("behavior", put("ground.0.target", "../config.json"), "dot component"),
    (
        "behavior",
        do(
            "effects",
            lambda found: found.insert(
                0, {"action": "adds", "beneath": None, "on": "file", "target": "/etc/x", "value": {"content": ZEROS}}
            ),
        ),
        "dot component",
    ),
    ("composition", do("slots", twice), "repeated"),
    ("composition", do("slots", lambda found: found.append({**found[0], "name": "POLITE"})), "repeated"),
    ("composition", put("slots.0.name", "a/b"), "cannot be the name of a behavior"),
    ("composition", put("slots.0.name", ""), "cannot be the name of a behavior"),
    ("composition", put("slots.0.weight", None), "finite number"),
    ("composition", put("slots.0.weight", True), "finite number"),
    ("composition", put("slots.0.weight", "1"), "finite number"),
    ("commit", put("parents", [ZEROS, ZEROS]), "repeated"),
    ("commit", put("parents", [5]), "is not an object id"),
    ("commit", put("parents", [None]), "is not an object id"),
    ("commit", put("message", "a" * (1 << 20) + "b"), "bytes, more than"),
    ("commit", put("author", "a" * 65537), "bytes, more than"),
    ("commit", put("time", "2026-02-29T00:00:00Z"), "no calendar"),
    ("tag", put("name", "../../x"), "cannot be the name of a tag"),
    ("tag", put("name", "HEAD"), "cannot be the name of a tag"),
    ("tag", put("target", None), "not an object id"),
    ("operation", put("sequence", 0), "integer from 1"),
    ("operation", put("sequence", 2), "does not fit its sequence"),
    ("operation", put("previous", ZEROS), "does not fit its sequence"),
    ("operation", do("changes", backwards), "repeated or out of order"),
    ("operation", do("changes", twice), "repeated or out of order"),
    ("operation", put("changes.0.ref", "refs/heads/../x"), "dot component"),
    ("operation", put("changes.0.ref", "refs/heads/\x1b[2J"), "not allowed"),
    ("operation", put("changes.0.after", "main"), "neither an id nor a symbolic ref"),
    ("operation", put("changes.0.after", "ref: refs//x"), "dot component"),
    ("operation", put("changes.0.after", ""), "neither an id nor a symbolic ref"),
    ("statement", put("claims", []), "array of 1 or more"),
    ("statement", do("claims", twice), "repeated or out of order"),
    ("statement", do("claims", backwards), "repeated or out of order"),
    ("statement", put("claims.0.key", "k" * 256), "256 bytes"),
    ("statement", put("claims.0.value", 5), "not text"),
    ("probe", put("prompts", []), "array of 1 or more"),
    ("probe", put("prompts.1.id", "p0"), "repeated"),
    ("probe", put("prompts.0.tokens", []), "has no tokens"),
    ("probe", put("prompts.0.tokens", [2**31]), "array of integers"),
    ("probe", put("prompts.0.tokens", [-1]), "array of integers"),
    ("probe", put("batches", []), "every prompt once"),
    ("probe", put("batches", [[0]]), "every prompt once"),
    ("probe", put("batches", [[0, 1, 1]]), "every prompt once"),
    ("probe", put("batches", [[0, 1], []]), "every prompt once"),
    ("probe", put("batches", [[0, 2]]), "every prompt once"),
    ("probe", put("batches", [0, 1]), "array of integers"),
    ("probe", put("positions", "first"), "none of all, last"),
    ("baseline", put("prompts", []), "array of 1 or more"),
    ("baseline", put("prompts.0.shape", [1]), "not \\(positions, width\\)"),
    ("baseline", put("prompts.0.shape", [1, 2, 3]), "not \\(positions, width\\)"),
    ("baseline", put("prompts.0.shape", [2**52, 2**52]), "larger than"),
    ("baseline", put("prompts.1.id", "p0"), "repeated"),
    ("baseline", put("dtype", "float32"), "not known"),
    ("baseline", put("output", "text"), "none of embedding, logits"),
    ("baseline", put("environment", {"threads": 1}), "not text"),
    ("baseline", put("environment", []), "not a JSON object"),
    ("verification", put("verdict", "exact"), "'exact' means bit-equal"),
    ("verification", put("bit_equal", True), "'exact' means bit-equal"),
    ("verification", put("bit_equal", 0), "true or false"),
    ("verification", put("verdict", "unverified"), "none of"),
    ("verification", put("prompts.1.id", "p0"), "repeated"),
    ("verification", put("kl", "0"), "finite number"),
    ("verification", put("tolerance", None), "finite number"),
    ("verification", put("removed", ["a", 5]), "not text"),
    ("study", put("study", "Elimination"), "small letters"),
    ("study", put("commits", []), "array of 1 or more"),
    ("study", do("commits", twice), "repeated"),
    ("study", do("probes", twice), "repeated"),
    ("study", put("points", []), "array of 1 or more"),
    ("study", put("parameters", []), "not a JSON object"),
    ("study", put("parameters.a-b", 1), "small letters"),
    ("study", put("parameters.a", [[1]]), "not a finite number"),
    ("study", put("points.0.condition", {"epsilon": {}}), "not a finite number"),
    ("study", put("points.0.seed", -1), "integer from 0"),
    ("study", put("points.0.seed", 0.5), "integer from 0"),
    ("study", put("points.0.bit_equal", 1), "true, false or null"),
    ("study", put("points.0.values.rf", True), "not a finite number"),
    ("study", put("points.0.prompts.1.id", "p0"), "repeated"),
    ("study", put("points.0.prompts.0.values", None), "not a JSON object"),
    ("signature", put("subject", None), "not an object id"),
    ("signature", put("method", "pgp"), "none of"),
    ("signature", put("key", None), "'key' is null for sigstore"),
    ("signature", put("key", "0"), "not an object id"),
    ("signature", put("identity", "Ada"), "'identity' is null for a key"),
    ("signature", put("payload_type", "a" * 256), "more than the 255"),
    ("signature", put("bundle", "0"), "not an object id"),
    ("signature", put("time", "today"), "not an RFC 3339 time"),
    ("tombstone", put("subject", "0"), "not an object id"),
    ("tombstone", put("reason", " "), "'reason' is empty"),
    ("tombstone", put("author", None), "not text"),
    ("training-state", put("files", []), "array of 1 or more"),
    ("training-state", put("files.1.path", "state.json"), "repeated"),
    ("training-state", put("step", -1), "integer from 0"),
    ("training-state", put("commit", None), "not an object id"),
    ("training-state", put("environment", {"torch": 2}), "not text"),
]


@pytest.mark.parametrize(
    ("kind", "change", "why"), BREACHES, ids=[f"{kind}-{change.__name__}" for kind, change, _ in BREACHES]
)
def test_breach(kind: str, change: Callable[[Any], None], why: str) -> None:
    body = record_body(EXAMPLES[kind], kind)
    change(body)
    with pytest.raises(InputError, match=why) as caught:
        parse_record(record_bytes(kind, body))
    assert len(caught.value.message) < 600


def test_every_kind_has_breaches() -> None:
    assert {kind for kind, _, _ in BREACHES} == set(KINDS)


def test_unknown_kinds() -> None:
    with pytest.raises(InputError, match="is not a kind of record"):
        parse_record(b"rblstore/tree/1\n{}")


def test_records_are_frozen() -> None:
    commit = Commit.parse(EXAMPLES["commit"])
    with pytest.raises(AttributeError):
        commit.message = "other"  # type: ignore[misc]
    assert commit.subject == "polite"


def test_a_slot_by_name() -> None:
    composition = Composition.parse(EXAMPLES["composition"])
    assert composition.slot("polite") == composition.slots[0]
    assert composition.slot("Polite") is None


def test_grounds_of_a_behavior() -> None:
    behavior = Behavior.parse(EXAMPLES["behavior"])
    assert [(ground.on, ground.target) for ground in behavior.grounds] == [
        ("tensor", "linear.bias"),
        ("tensor", "linear.weight"),
        ("file", "config.json"),
    ]
    assert not behavior.additive
    assert Behavior("adapter", (), behavior.effects[1:]).additive
    assert not Behavior("adapter", (), ()).additive


def test_a_file_is_its_contents_in_order() -> None:
    manifest = FileManifest.parse(EXAMPLES["file-manifest"])
    assert manifest.contents() == (manifest.header, *(entry.tensor.content for entry in manifest.tensors))
    identity = Identity.parse(EXAMPLES["identity"])
    assert identity.files[1].manifest == FileManifest.id_of(EXAMPLES["file-manifest"])
    assert type(identity.files[1].manifest) is FileManifestId


def test_ground_of_a_tensor() -> None:
    ground = Ground.tensor("w", StoredTensor("F32", (2, 0), ContentId(ONES)))
    assert Ground.read(ground.body()) == ground
    assert StoredTensor("F32", (2, 3), ContentId(ONES)).size == 24


def test_tensor_root_of_nothing_and_of_names() -> None:
    tensor = StoredTensor("F32", (), ContentId(ONES))
    assert tensor_root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    roots = {tensor_root([(name, tensor)]) for name in ("a", "b", 'a"', "a\n", "é", "e\u0301")}
    assert len(roots) == 6


def test_measured_positions() -> None:
    probe = Probe.parse(EXAMPLES["probe"])
    assert probe.measured_positions() == 2
    assert Probe(probe.prompts, probe.batches, "all", None).measured_positions() == 3


@pytest.mark.parametrize(
    "text",
    ["2026-03-01T12:00:00Z", "2024-02-29T23:59:59.123456789-12:30", "0001-01-01T00:00:00.5+00:00"],
)
def test_times(text: str) -> None:
    assert check_time(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-03-01", "2026-03-01 12:00:00Z", "2026-03-01T12:00:00", "2026-03-01t12:00:00z", "2026-3-1T12:00:00Z",
        "2026-13-01T12:00:00Z", "2026-00-01T12:00:00Z", "2026-04-31T12:00:00Z", "2025-02-29T12:00:00Z",
        "2026-03-01T24:00:00Z",
        "2026-03-01T12:60:00Z", "2026-03-01T12:00:60Z", "2026-03-01T12:00:00.Z", "2026-03-01T12:00:00.1234567890Z",
        "2026-03-01T12:00:00+24:00", "2026-03-01T12:00:00+0100", "2026-03-01T12:00:00Z\n", "٢٠٢٦-03-01T12:00:00Z",
        "0000-01-01T00:00:00Z", "-2026-03-01T12:00:00Z",
    ],
)  # fmt: skip
def test_no_times(text: str) -> None:
    with pytest.raises(InputError, match=r"not an RFC 3339 time|no calendar"):
        check_time(text)


def test_text_caps_count_bytes() -> None:
    assert check_text("é" * 5, "x", 10) == "é" * 5
    with pytest.raises(InputError, match="x takes 12 bytes"):
        check_text("é" * 6, "x", 10)
    with pytest.raises(InputError, match="not valid Unicode"):
        check_text("\ud800", "x")


def test_fields_are_taken_once() -> None:
    fields = Fields({"a": 1, "b": None}, "thing")
    assert fields.integer("a") == 1
    assert fields.optional_text("b") is None
    fields.done()
    with pytest.raises(InputError, match="thing: 'a' is missing"):
        fields.take("a")


def test_sorted_means_strictly() -> None:
    require_sorted([], "x")
    require_sorted(["a", "b"], "x")
    for values in (["a", "a"], ["b", "a"]):
        with pytest.raises(InputError, match="repeated or out of order"):
            require_sorted(values, "x")
