"""Who signed a commit, or a verification of it, stands in every document, as a claim, in the field made for it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_story
import pytest
import tiny_checkpoints
from export_story import Told

import rblstore
from rblstore.objects.evidence_records import Verification
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.signature_records import Signature
from rblstore.operations.checkout import plan

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives.asymmetric import ec
from made_keys import as_pem, certificate, pem, public

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = "A <b>|`x` \u202e](http://e.org)"
FORMATS = ("cyclonedx", "spdx3", "in-toto", "model-card", "annex-xi")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The story, before and after a commit and its verification were signed; the bundle over the commit beside it."""
    folder = tmp_path_factory.mktemp("signed")
    told = export_story.tell(folder)
    before = {form: told.repo.export("HEAD", form) for form in FORMATS}
    found = told.repo.sign(key=pem(KEY), certificates=as_pem(certificate(KEY, NAME)), author="Ada")
    evidence = told.repo.sign(verification=str(told.verification), key=pem(KEY), author="Bob")
    yield told, before, found, evidence
    told.repo.close()


def document(signed: Any, form: str) -> Any:
    return signed[0].repo.export("HEAD", form).document


def test_every_document_names_signer_and_record_and_is_another_one(signed: Any) -> None:
    told, before, found, evidence = signed
    for form in FORMATS:
        after = told.repo.export("HEAD", form)
        assert after.data != before[form].data
        assert told.repo.export("HEAD", form).data == after.data
        text = after.data.decode()
        assert found.key in text, form
        assert NAME not in text or form == "in-toto", "what others wrote stays text"
        about = told.repo.export("HEAD~1", form) if form != "in-toto" else None
        assert about is None or found.key not in about.data.decode(), "they are of another commit"
        if form not in ("in-toto", "model-card"):
            assert found.signature in text
            assert evidence.signature in text


def test_cyclonedx_has_them_as_references(signed: Any) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    told, _, found, evidence = signed
    data = told.repo.export("HEAD", "cyclonedx").data.decode()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(data) is None
    references = {one["type"]: one for one in json.loads(data)["metadata"]["component"]["externalReferences"]}
    assert set(references) == {"digital-signature", "attestation"}
    one = references["digital-signature"]
    assert one["hashes"] == [{"alg": "SHA-256", "content": found.bundle}]
    kind, digest = one["url"].split(";")
    assert (kind, base64.urlsafe_b64decode(digest + "=").hex()) == ("ni:///sha-256", found.bundle)
    values = {each["name"]: each["value"] for each in one["properties"]}
    assert values["rblstore:key"] == found.key
    assert values["rblstore:identity"] == found.identity
    assert values["rblstore:commit"] == told.head
    assert "not verified here" in one["comment"]
    assert references["attestation"]["hashes"][0]["content"] == evidence.bundle


def test_spdx_has_them_as_evidence(signed: Any) -> None:
    from spdx_python_model.bindings import v3_0_1 as model

    told, _, found, evidence = signed
    data = told.repo.export("HEAD", "spdx3").data
    objects = model.SHACLObjectSet()
    model.JSONLDDeserializer().deserialize_data(json.loads(data), objects)
    whole = next(one for one in objects.foreach_type("ai_AIPackage") if one.software_packageVersion == told.head)
    relations = [one for one in objects.foreach_type("Relationship") if one.relationshipType.endswith("/hasEvidence")]
    assert [(one.from_ is whole or one.from_ == whole.spdxId) for one in relations] == [True]
    files = {one.verifiedUsing[0].hashValue: one for one in relations[0].to}
    assert set(files) == {found.bundle, evidence.bundle}
    assert found.key in files[found.bundle].comment
    assert files[found.bundle].contentType == "application/vnd.dev.sigstore.bundle.v0.3+json"


def test_in_toto_has_them_with_the_commit(signed: Any, tmp_path: Path) -> None:
    from google.protobuf.json_format import Parse
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    told, before, found, _ = signed
    result = told.repo.export("HEAD", "in-toto")
    Statement.copy_from_pb(Parse(result.data, statement_pb2.Statement())).validate()
    (commit,) = (one for one in result.document["subject"] if one["name"] == f"commit/{told.head}")
    (one,) = commit["annotations"]["signatures"]
    assert (one["key"], one["bundle"], one["identity"]) == (found.key, {"sha256": found.bundle}, found.identity)
    assert "annotations" not in before["in-toto"].document["subject"][0]
    # What was signed as evidence before still holds, though the statement says more now.
    told.repo.sign(key=pem(KEY))
    assert told.repo.verify_signature(verification=str(told.verification), key=public(KEY)).status == "signed"


def test_pages_have_them_as_text(signed: Any) -> None:
    told, _, found, _ = signed
    for form in ("model-card", "annex-xi"):
        text = told.repo.export("HEAD", form).data.decode()
        assert "<b>" not in text
        assert f"`{found.key}`" in text
    assert {one["over"] for one in document(signed, "annex-xi")["signatures"]} == {"commit", "verification"}
    assert "No signature over this commit is recorded." in told.repo.export("HEAD~1", "model-card").document


def test_weights_that_nobody_committed_as_they_are_are_subjects_too(tmp_path: Path) -> None:
    """Of an overlay without the one that it was made on: they are read to be hashed."""
    told = export_story.tell(tmp_path)
    norm, values = (tiny_checkpoints.values(*shape, seed=seed) for *shape, seed in ((4, 77), (8, 4, 78)))
    other = tiny_checkpoints.write_base(tmp_path / "other", model__norm__weight=norm, lm_head__weight=values)
    (other / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    told.repo.commit("other", behaviors={"other": other}, author="Ada")
    made = told.repo.commit("alone", remove=["tuned"], author="Ada").commit
    planned = plan(told.store, told.store.record(told.store.record(made, Commit).composition, Composition))
    assert [file.path for file in planned if file.sha256 is None] == ["model.safetensors"]
    _verified(told, made)
    told.repo.checkout("HEAD", tmp_path / "out")
    statement = told.repo.export("HEAD", "in-toto").document
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert subjects.pop(f"commit/{made}") == made
    assert subjects == tiny_checkpoints.digests(tmp_path / "out")
    told.repo.close()


def _verified(told: Told, commit: Any) -> None:
    store = told.store
    record = store.record(told.verification, Verification)
    told.add(replace(record, commit=commit, composition=store.record(commit, Commit).composition))


def test_a_hostile_signature_record_is_no_markup(tmp_path: Path) -> None:
    told = export_story.tell(tmp_path)
    made = told.repo.sign(key=pem(KEY))
    told.add(replace(told.store.record(made.signature, Signature), author=export_story.HOSTILE))
    for form in ("model-card", "annex-xi"):
        assert "<script>" not in told.repo.export("HEAD", form).data.decode()
    told.repo.close()
    with rblstore.open(tmp_path / "store") as repo:
        assert repo.fsck(full=True).ok
