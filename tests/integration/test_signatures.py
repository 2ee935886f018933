"""Signatures over commits, directories and verifications: signed by whom, unsigned, and bad are different answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_adapter, write_base

import rblstore
from rblstore.errors import InputError, UsageError
from rblstore.objects.ids import ContentId, RecordId, SignatureId
from rblstore.objects.signature_records import Signature
from rblstore.operations.signatures import signatures_of
from rblstore.provenance.signing_keys import BadKeyError, PasswordError, private_key

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from made_keys import as_pem, certificate, pem, public

KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
PRIVATE, PUBLIC = pem(KEY), public(KEY)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rblstore.Repository]:
    folder = tmp_path_factory.mktemp("signed")
    base = write_base(folder / "base")
    (base / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    with rblstore.init(folder / "store") as found:
        found.commit("base", identity=base)
        found.commit("polite", behaviors={"polite": write_adapter(folder / "polite")})
        yield found


def public_tool(directory: Path, signature: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """What a stranger runs."""
    tool = [sys.executable, "-m", "model_signing", "verify", "key", "--public_key", str(key)]
    return subprocess.run(
        [*tool, "--signature", str(signature), str(directory)], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_stranger_verifies_a_checkout_and_refuses_a_changed_byte(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "out")
    result = repo.sign(key=PRIVATE, output=tmp_path / "out")
    assert result.output == tmp_path / "out" / "model.sig"
    assert result.left_out == (".gitattributes",)
    (tmp_path / "public.pem").write_bytes(PUBLIC)
    told = public_tool(tmp_path / "out", result.output, tmp_path / "public.pem")
    assert told.returncode == 0, told.stderr
    assert rblstore.verify_signature(tmp_path / "out", key=PUBLIC).status == "signed"
    weights = tmp_path / "out" / "behaviors" / "polite" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    told = public_tool(tmp_path / "out", result.output, tmp_path / "public.pem")
    assert told.returncode != 0
    assert "adapter_model.safetensors" in told.stdout + told.stderr
    check = rblstore.verify_signature(tmp_path / "out", key=PUBLIC)
    assert (check.status, check.signatures[0].code) == ("bad", "other_files")
    assert "adapter_model.safetensors" in (check.signatures[0].problem or "")


def test_three_answers_over_a_commit(repo: rblstore.Repository) -> None:
    assert repo.verify_signature("HEAD^", key=PUBLIC).status == "unsigned"
    signed = repo.sign(key=PRIVATE)
    check = repo.verify_signature(key=PUBLIC)
    assert check.status == "signed"
    assert check.signatures[-1].key == signed.key
    assert check.signatures[-1].signature == signed.signature
    unknown = repo.verify_signature()
    assert unknown.status == "not_verified"
    assert {one.status for one in unknown.signatures} == {"not_verified"}
    wrong = repo.verify_signature(key=public(OTHER))
    assert (wrong.status, wrong.signatures[-1].code) == ("bad", "wrong_key")


def test_a_second_signer_does_no_harm(repo: rblstore.Repository) -> None:
    repo.sign(key=PRIVATE)
    repo.sign(key=pem(OTHER))
    for key in (KEY, OTHER):
        assert repo.verify_signature(key=public(key)).status == "signed"


def test_a_signature_over_another_commit(repo: rblstore.Repository, tmp_path: Path) -> None:
    """Even of one with the same composition: the commit's id is among what is signed."""
    head = repo.head
    again = repo.commit("again", allow_empty=True)
    assert head is not None
    repo.sign(str(head), key=PRIVATE, output=tmp_path / "a.sig")
    check = repo.verify_signature(str(again.commit), key=PUBLIC, signature=tmp_path / "a.sig")
    assert (check.status, check.signatures[0].code) == ("bad", "other_commit")
    assert check.signatures[0].problem == f"it is over commit {head[:12]}, not over commit {again.commit[:12]}"
    repo.checkout(str(again.commit), tmp_path / "out")
    check = rblstore.verify_signature(tmp_path / "out", key=PUBLIC, signature=tmp_path / "a.sig")
    assert (check.status, check.signatures[0].code) == ("bad", "other_commit")
    repo.undo()


def record_of(repo: rblstore.Repository, over: RecordId, **changed: Any) -> SignatureId:
    """A record of the latest signature over something, with members that are not those it was made with."""
    store = repo._store
    latest = signatures_of(store, over)[-1]
    with store.transaction("mallory") as transaction:
        record = replace(store.record(latest.id, Signature), **changed)
        return SignatureId(transaction.add_record(record))


def test_a_record_that_claims_what_its_bundle_does_not_have(repo: rblstore.Repository, tmp_path: Path) -> None:
    commit = repo.commit("claimed", allow_empty=True).commit
    repo.sign(str(commit), key=PRIVATE)
    other = repo.commit("other", allow_empty=True).commit
    moved = record_of(repo, commit, subject=RecordId(other))
    check = repo.verify_signature(str(other), key=PUBLIC)
    assert (check.status, check.signatures[0].signature, check.signatures[0].code) == ("bad", moved, "other_commit")
    third = repo.commit("third", allow_empty=True).commit
    repo.sign(str(third), key=PRIVATE)
    record_of(repo, third, key=ContentId("0" * 64))
    claimed = repo.verify_signature(str(third), key=PUBLIC).signatures[-1]
    assert (claimed.status, claimed.code) == ("bad", "wrong_key")
    for _ in range(3):
        repo.undo()


def break_bundle(data: bytes, how: str) -> bytes:
    bundle = json.loads(data)
    if how == "no json":
        return data[:-1]
    if how == "duplicate member":
        return data[:-1] + b',"mediaType":"x"}'
    if how == "no envelope":
        del bundle["dsseEnvelope"]
    if how == "a list":
        bundle = [bundle]
    if how == "no material":
        bundle["verificationMaterial"] = {}
    if how == "no signature":
        bundle["dsseEnvelope"]["signatures"] = []
    if how == "payload of numbers":
        bundle["dsseEnvelope"]["payload"] = 5
    if how == "signature of nothing":
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = ""
    if how == "key of another shape":
        bundle["verificationMaterial"]["publicKey"] = []
    if how == "other media type":
        bundle["mediaType"] = "text/plain"
    if how == "payload type":
        bundle["dsseEnvelope"]["payloadType"] = "text/plain"
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    "how",
    [
        "no json", "duplicate member", "no envelope", "a list", "no material", "no signature", "payload of numbers",
        "signature of nothing", "key of another shape", "other media type", "payload type",
    ],
)  # fmt: skip
def test_malformed_bundles_are_bad(repo: rblstore.Repository, tmp_path: Path, how: str) -> None:
    repo.sign(key=PRIVATE, output=tmp_path / "a.sig")
    (tmp_path / "a.sig").write_bytes(break_bundle((tmp_path / "a.sig").read_bytes(), how))
    check = repo.verify_signature(key=PUBLIC, signature=tmp_path / "a.sig")
    assert check.status == "bad"
    assert check.signatures[0].problem


def test_a_bundle_without_a_hint_prints_nothing(
    repo: rblstore.Repository, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repo.sign(key=PRIVATE, output=tmp_path / "a.sig")
    bundle = json.loads((tmp_path / "a.sig").read_bytes())
    bundle["verificationMaterial"]["publicKey"] = {}
    (tmp_path / "a.sig").write_text(json.dumps(bundle))
    assert repo.verify_signature(key=PUBLIC, signature=tmp_path / "a.sig").status == "signed"
    assert repo.verify_signature(key=public(OTHER), signature=tmp_path / "a.sig").status == "bad"
    assert capfd.readouterr().out == ""


ROOT_KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = certificate(ROOT_KEY, "Root", ca=True)


def test_certificates(repo: rblstore.Repository, tmp_path: Path) -> None:
    mine = as_pem(certificate(KEY, "Ada", issuer=ROOT, signer=ROOT_KEY))
    signed = repo.sign(key=PRIVATE, certificates=mine, output=tmp_path / "a.sig")
    assert (signed.method, signed.identity) == ("certificate", "CN=Ada")
    good = repo.verify_signature(roots=as_pem(ROOT), signature=tmp_path / "a.sig")
    assert (good.status, good.signatures[0].identity, good.signatures[0].key) == ("signed", "CN=Ada", signed.key)
    stranger = as_pem(certificate(OTHER, "Root", ca=True))
    for trusted in ({"roots": stranger}, {"key": PUBLIC}):
        assert repo.verify_signature(signature=tmp_path / "a.sig", **trusted).status == "bad"
    assert repo.verify_signature(roots=as_pem(ROOT)).status == "signed"
    with pytest.raises(BadKeyError, match="another key"):
        repo.sign(key=pem(OTHER), certificates=mine)


def test_an_expired_certificate_and_one_that_is_not_for_signing(repo: rblstore.Repository, tmp_path: Path) -> None:
    expired = certificate(KEY, "Ada", issuer=ROOT, signer=ROOT_KEY, days=-1)
    authority = certificate(KEY, "Sub", issuer=ROOT, signer=ROOT_KEY, ca=True)
    early = certificate(KEY, "Ada", issuer=ROOT, signer=ROOT_KEY, begins=1)
    for found, code, why in (
        (expired, "expired_certificate", "CN=Ada expired on"),
        (early, "expired_certificate", "CN=Ada begins"),
        (authority, "untrusted_certificate", "not for signing"),
    ):
        repo.sign(key=PRIVATE, certificates=as_pem(found), output=tmp_path / "a.sig", force=True)
        check = repo.verify_signature(roots=as_pem(ROOT), signature=tmp_path / "a.sig")
        assert (check.status, check.signatures[0].code) == ("bad", code)
        assert why in (check.signatures[0].problem or "")


def test_a_root_that_has_expired_vouches_for_nobody(repo: rblstore.Repository, tmp_path: Path) -> None:
    old = certificate(ROOT_KEY, "Root", ca=True, days=-1)
    mine = certificate(KEY, "Ada", issuer=ROOT, signer=ROOT_KEY)
    repo.sign(key=PRIVATE, certificates=as_pem(mine), output=tmp_path / "a.sig")
    check = repo.verify_signature(roots=as_pem(old), signature=tmp_path / "a.sig")
    assert (check.status, check.signatures[0].code) == ("bad", "expired_certificate")
    assert repo.verify_signature(roots=as_pem(old) + as_pem(ROOT), signature=tmp_path / "a.sig").status == "signed"


# Of a public key in a certificate; with the last byte another, nobody knows the algorithm.
EC_KEY_OID = bytes.fromhex("06072a8648ce3d0201")


def test_certificates_that_cannot_be_read(repo: rblstore.Repository, tmp_path: Path) -> None:
    import base64

    mine = certificate(KEY, "Ada", issuer=ROOT, signer=ROOT_KEY)
    repo.sign(key=PRIVATE, certificates=as_pem(mine), output=tmp_path / "a.sig")
    bundle = json.loads((tmp_path / "a.sig").read_bytes())
    held = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][0]
    strange = base64.b64decode(held["rawBytes"]).replace(EC_KEY_OID, EC_KEY_OID[:-1] + b"\x09")
    held["rawBytes"] = base64.b64encode(strange).decode()
    (tmp_path / "a.sig").write_text(json.dumps(bundle))
    check = repo.verify_signature(roots=as_pem(ROOT), signature=tmp_path / "a.sig")
    assert (check.status, check.signatures[0].code) == ("bad", "malformed_signature")
    wrapped = f"-----BEGIN CERTIFICATE-----\n{held['rawBytes']}\n-----END CERTIFICATE-----\n".encode()
    with pytest.raises(BadKeyError, match="not certificates"):
        repo.verify_signature(roots=wrapped)
    with pytest.raises(BadKeyError, match="not certificates"):
        repo.sign(key=PRIVATE, certificates=wrapped)


def test_keys_that_cannot_be_used() -> None:
    with pytest.raises(PasswordError, match="needs its password"):
        private_key(pem(KEY, b"secret"))
    with pytest.raises(PasswordError, match="with this password"):
        private_key(pem(KEY, b"secret"), b"wrong")
    assert private_key(pem(KEY, b"secret"), b"secret").private_numbers() == KEY.private_numbers()
    assert private_key(PRIVATE, b"unneeded").private_numbers() == KEY.private_numbers()
    for data, why in (
        (PUBLIC, "not a private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot be read"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "of the curve secp256k1"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "of another kind"),
        (b"A" * (1 << 20) + b"PRIVATE KEY-----", "more than the 1048576 allowed"),
    ):
        with pytest.raises(BadKeyError, match=why):
            private_key(data)


def test_keys_that_nothing_is_verified_with(repo: rblstore.Repository, tmp_path: Path) -> None:
    for data, why in ((PRIVATE, "a private key"), (b"nothing", "not a public key"), (as_pem(ROOT), "not a public key")):
        with pytest.raises(BadKeyError, match=why):
            repo.verify_signature(key=data)
    with pytest.raises(BadKeyError, match="not certificates"):
        repo.verify_signature(roots=PUBLIC)
    with pytest.raises(InputError, match="cannot be read"):
        repo.verify_signature(key=tmp_path / "none.pem")
    with pytest.raises(UsageError, match="give both"):
        repo.verify_signature(identity="ada@example.org")


def test_nothing_of_a_private_key_is_stored(repo: rblstore.Repository) -> None:
    import base64

    repo.sign(key=pem(KEY, b"secret"), password=b"secret")
    secret = KEY.private_numbers().private_value.to_bytes(32, "big")
    forms = [secret, secret.hex().encode(), base64.b64encode(secret)[:40], PRIVATE[40:80]]
    for path in (repo.path / ".rbl").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(form in data for form in forms), path


def test_requests_that_contradict_themselves(repo: rblstore.Repository, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a private key, or keyless"):
        repo.sign()
    with pytest.raises(UsageError, match="a private key, or keyless"):
        repo.sign(key=PRIVATE, keyless=True)
    (tmp_path / "model.sig").write_text("mine")
    with pytest.raises(rblstore.ConflictError, match="exists already"):
        repo.sign(key=PRIVATE, output=tmp_path)
    assert (tmp_path / "model.sig").read_text() == "mine"
    with pytest.raises(InputError, match="no directory"):
        repo.sign(key=PRIVATE, output=tmp_path / "no" / "a.sig")


def test_a_link_in_a_directory_is_refused(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "out")
    repo.sign(key=PRIVATE, output=tmp_path / "out")
    (tmp_path / "out" / "extra.bin").symlink_to("config.json")
    with pytest.raises(InputError, match="symlink"):
        rblstore.verify_signature(tmp_path / "out", key=PUBLIC)
    (tmp_path / "out" / "extra.bin").unlink()
    (tmp_path / "out" / "extra.bin").write_bytes(b"unsigned")
    check = rblstore.verify_signature(tmp_path / "out", key=PUBLIC)
    assert (check.status, "not signed: extra.bin" in (check.signatures[0].problem or "")) == ("bad", True)


def test_a_checkout_is_verified_by_what_the_repository_has(repo: rblstore.Repository, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "out")
    repo.sign(key=PRIVATE)
    assert repo.verify_signature(directory=tmp_path / "out", key=PUBLIC).status == "signed"
    assert rblstore.verify_signature(tmp_path / "out", key=PUBLIC).status == "unsigned"


def test_keyless_without_a_network(repo: rblstore.Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import base64
    import socket

    from rblstore.provenance.keyless import KeylessUnavailableError, NoIdentityError

    def refused(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("id.detect_credential", lambda audience: None)
    with pytest.raises(NoIdentityError):
        repo.sign(keyless=True)
    with pytest.raises(NoIdentityError):
        repo.sign(keyless=True, identity_token="nothing")
    parts = (
        {"alg": "none"},
        {"aud": "sigstore", "iat": 0, "nbf": 0, "exp": 2**33, "iss": "https://a.example", "sub": "ada"},
    )
    token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    before = signatures_of(repo._store, RecordId(str(repo.head)))
    with pytest.raises(KeylessUnavailableError, match="sigstore cannot be reached") as caught:
        repo.sign(keyless=True, identity_token=token + ".c2ln")
    assert "--key" in (caught.value.hint or "")
    assert signatures_of(repo._store, RecordId(str(repo.head))) == before
