"""Signatures over merged checkouts, and over which checkout a signature is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoints import values, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.checkpoints.merging import CannotMergeError
from rblstore.errors import ConflictError, NothingChangedError, UsageError
from rblstore.objects.ids import RecordId
from rblstore.objects.signature_records import Signature
from rblstore.operations.signatures import signatures_of
from rblstore.provenance.bundles import sign_payload
from rblstore.provenance.signed_files import SignedCheckout, files_payload
from rblstore.provenance.signing_keys import private_key
from rblstore.storage.durable import WriteError

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives.asymmetric import ec
from made_keys import pem, public

KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[rblstore.Repository]:
    """base <- tuned, an overlay, and polite, an adapter on it."""
    base = write_base(tmp_path / "base")
    tuned = write_base(tmp_path / "tuned", model__norm__weight=values(4, seed=77))
    with rblstore.init(tmp_path / "store") as found:
        found.commit("base", identity=base)
        found.commit("both", behaviors={"tuned": tuned, "polite": write_adapter(tmp_path / "polite")})
        yield found


def test_a_merged_checkout_is_signed_without_being_written(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "plain", form="merged")
    signed = repo.sign(form="merged", key=pem(KEY), output=tmp_path / "plain")
    assert (signed.form, signed.files) == ("merged", 3)
    check = rblstore.verify_signature(tmp_path / "plain", key=public(KEY))
    assert (check.status, check.files) == ("signed", 3)
    (tmp_path / "public.pem").write_bytes(public(KEY))
    told = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "key", str(tmp_path / "plain"), "--signature",
         str(tmp_path / "plain" / "model.sig"), "--public_key", str(tmp_path / "public.pem")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert repo.verify_signature(key=public(KEY)).status == "signed"
    weights = tmp_path / "plain" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    check = rblstore.verify_signature(tmp_path / "plain", key=public(KEY))
    assert (check.status, check.signatures[0].code) == ("bad", "other_files")


def test_what_peft_merges_is_signed_too(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    import tiny_models

    model = tiny_models.llama(layers=1)
    base = tiny_models.save(model, tmp_path / "base")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        repo.commit("ia3", behaviors={"ia3": tiny_models.save_adapter(model, tmp_path / "ia3", "ia3")})
        repo.checkout("HEAD", tmp_path / "plain", form="merged")
        repo.sign(form="merged", key=pem(KEY), output=tmp_path / "plain")
        assert rblstore.verify_signature(tmp_path / "plain", key=public(KEY)).status == "signed"


def test_a_signature_does_not_lie_in_a_checkout_that_it_is_not_over(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "plain", form="merged")
    with pytest.raises(ConflictError, match="in the form merged") as caught:
        repo.sign(key=pem(KEY), output=tmp_path / "plain")
    assert caught.value.code == "other_checkout"
    assert "--form merged" in (caught.value.hint or "")
    repo.checkout("HEAD~1", tmp_path / "older")
    with pytest.raises(ConflictError, match="is a checkout of commit"):
        repo.sign(key=pem(KEY), output=tmp_path / "older" / "model.sig")
    repo.checkout("HEAD", tmp_path / "part", only="config.json")
    with pytest.raises(ConflictError, match="a part of a checkout"):
        repo.sign(key=pem(KEY), output=tmp_path / "part")
    assert repo.verify_signature(key=public(KEY)).status == "unsigned"
    assert not list(tmp_path.rglob("model.sig"))
    with pytest.raises(UsageError, match="the form 'partial'"):
        repo.sign(form="partial", key=pem(KEY))  # type: ignore[arg-type]


def test_the_other_form_is_named(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "plain", form="merged")
    repo.sign(key=pem(KEY))
    check = repo.verify_signature(key=public(KEY), directory=tmp_path / "plain")
    assert (check.status, check.signatures[0].code) == ("bad", "other_files")
    assert "in the form adapters" in (check.signatures[0].problem or "")
    repo.sign(form="merged", key=pem(KEY))
    assert repo.verify_signature(key=public(KEY), directory=tmp_path / "plain").status == "signed"


def test_a_wrong_key_is_said_before_anything_is_compared(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.sign("HEAD~1", key=pem(OTHER), output=tmp_path / "a.sig")
    check = repo.verify_signature(key=public(KEY), signature=tmp_path / "a.sig")
    assert (check.status, check.signatures[0].code) == ("bad", "wrong_key")


def test_the_signature_is_no_change_of_the_checkout(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "out")
    repo.sign(key=pem(KEY), output=tmp_path / "out")
    assert repo.status(tmp_path / "out").differences == ()
    assert not [one for one in repo.audit_path(tmp_path / "out").findings if one.rule == "gap.files-differ"]
    again = repo.commit("again", identity=tmp_path / "out", remove=["tuned", "polite"])
    assert ("model.sig", "the checkout's signature, which is not over a commit to come") in again.left_out
    (tmp_path / "out" / "model.sig").unlink()
    (tmp_path / "out" / "model.sig").symlink_to("config.json")
    assert [(one.path, one.kind) for one in repo.status(tmp_path / "out").differences] == [("model.sig", "added")]


def test_a_models_own_file_of_that_name_is_signed_and_stays(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.sig").write_text("the publisher's")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        repo.checkout("HEAD", tmp_path / "out")
        with pytest.raises(ConflictError, match="one of the model's own files"):
            repo.sign(key=pem(KEY), output=tmp_path / "out", force=True)
        repo.sign(key=pem(KEY), output=tmp_path / "mine.sig")
        check = rblstore.verify_signature(tmp_path / "out", key=public(KEY), signature=tmp_path / "mine.sig")
        assert (check.status, check.files) == ("signed", 4)
        with pytest.raises(NothingChangedError):
            repo.commit("again", identity=tmp_path / "out")
        (tmp_path / "out" / "model.sig").write_text("changed")
        assert [(one.path, one.kind) for one in repo.status(tmp_path / "out").differences] == [("model.sig", "changed")]


def test_a_file_that_cannot_be_written_does_not_hide_that_it_is_signed(
    repo: rblstore.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise WriteError("no space left", hint="nothing was changed")

    monkeypatch.setattr("rblstore.operations.sign.write_file", full)
    with pytest.raises(WriteError, match="the signature is recorded, and could not be written") as caught:
        repo.sign(key=pem(KEY), output=tmp_path / "a.sig")
    assert "nothing was changed" not in (caught.value.hint or "")
    assert repo.verify_signature(key=public(KEY)).status == "signed"


def test_merged_weights_that_were_forgotten(repo: rblstore.Repository) -> None:
    repo.sign(form="merged", key=pem(KEY))
    repo.forget("polite", reason="withdrawn", apply=True)
    check = repo.verify_signature(key=public(KEY))
    assert (check.status, check.signatures[0].code) == ("not_verified", "forgotten")
    repo.sign(key=pem(KEY))
    assert repo.verify_signature(key=public(KEY)).status == "signed"


def test_there_is_no_merged_checkout(tmp_path: Path) -> None:
    with rblstore.init(tmp_path / "store") as repo:
        head = repo.commit("base", identity=write_base(tmp_path / "base")).commit
        repo.sign(form="merged", key=pem(KEY))  # nothing is to be merged: the same files, under the other form
        assert repo.verify_signature(key=public(KEY)).status == "signed"
        config = '{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}'
        folder = tmp_path / "prompt"
        write_safetensors(folder / "adapter_model.safetensors", {"prompt_embeddings": values(2, 4)})
        (folder / "adapter_config.json").write_text(config)
        tuned = repo.commit("prompt", behaviors={"prompt": folder}, unloadable=True).commit
        with pytest.raises(CannotMergeError):
            repo.sign(form="merged", key=pem(KEY))
        payload = files_payload(SignedCheckout(tuned, "merged").name, {"config.json": "0" * 64})
        store = repo._store
        signed = store.record(signatures_of(store, RecordId(head))[0].id, Signature)
        with store.transaction("mallory") as transaction:
            stored = transaction.add_content([sign_payload(payload, private_key(pem(KEY)))])
            transaction.add_record(replace(signed, subject=RecordId(tuned), bundle=stored.content))
        check = repo.verify_signature(key=public(KEY))
        assert (check.status, check.signatures[0].code) == ("bad", "other_subject")
