"""``rbl sign``, ``rbl verify-signature`` and ``rbl forget``, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_story import Story, run
from click.testing import CliRunner

from rblstore.cli.program import rbl

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from made_keys import as_pem, certificate, pem


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, the same encrypted, its public part, and somebody else's."""
    folder = tmp_path_factory.mktemp("keys")
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "private.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    hidden = serialization.BestAvailableEncryption(b"open sesame")
    (folder / "hidden.pem").write_bytes(key.private_bytes(pem, pkcs8, hidden))
    (folder / "password").write_text("open sesame\n")
    for name, one in (("public.pem", key), ("other.pem", other)):
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / name).write_bytes(one.public_key().public_bytes(pem, form))
    return folder


def test_unsigned_then_signed_then_bad(story: Story, keys: Path, tmp_path: Path) -> None:
    assert story.json("verify-signature", "--key", keys / "public.pem", code=1)["status"] == "unsigned"
    text = story.ok("sign", "--key", keys / "private.pem", "-o", tmp_path / "model.sig")
    assert text.startswith("signed commit ")
    found = story.json("verify-signature", "--key", keys / "public.pem")
    assert (found["status"], found["signatures"][0]["method"]) == ("signed", "key")
    assert story.json("verify-signature", code=1)["status"] == "not_verified"
    bad = story.json("verify-signature", "--key", keys / "other.pem", code=8)
    assert (bad["status"], bad["signatures"][0]["code"]) == ("bad", "wrong_key")
    told = run("-C", story.store, "verify-signature", "--key", keys / "other.pem")
    assert (told.exit_code, "BAD SIGNATURE" in told.stdout) == (8, True)
    older = story.json(
        "verify-signature", "HEAD~1", "--key", keys / "public.pem", "--signature", tmp_path / "model.sig", code=8
    )
    assert older["signatures"][0]["code"] == "other_commit"
    assert story.json("audit")["signatures"][0]["key"] == found["signatures"][0]["key"]
    story.ok("gc", "--apply", "--grace", "0")
    assert story.json("fsck", "--full")["ok"]
    story.ok("reindex")
    assert story.json("verify-signature", "--key", keys / "public.pem")["status"] == "signed"


def test_a_directory_needs_no_repository(story: Story, keys: Path, tmp_path: Path) -> None:
    story.ok("checkout", "HEAD", tmp_path / "out")
    story.ok("sign", "--key", keys / "hidden.pem", "--password-file", keys / "password", "-o", tmp_path / "out")
    told = run("-C", tmp_path, "verify-signature", "out", "--key", keys / "public.pem", "--json")
    assert (told.exit_code, json.loads(told.stdout)["status"]) == (0, "signed")
    (tmp_path / "out" / "config.json").chmod(0o644)
    (tmp_path / "out" / "config.json").write_text("{}")
    told = run("-C", tmp_path, "verify-signature", "out", "--key", keys / "public.pem")
    assert told.exit_code == 8
    assert "config.json" in told.stdout


def test_each_bad_signature_has_an_answer_of_its_own(story: Story, keys: Path, tmp_path: Path) -> None:
    """Another key, another commit, other bytes, a certificate that expired or that nobody knows, no bundle."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root, stranger = certificate(root_key, "Root", ca=True), certificate(key, "Stranger", ca=True)
    (tmp_path / "key.pem").write_bytes(pem(key))
    (tmp_path / "root.pem").write_bytes(as_pem(root))
    (tmp_path / "stranger.pem").write_bytes(as_pem(stranger))
    for name, days in (("good", 30), ("old", -1)):
        (tmp_path / f"{name}.crt").write_bytes(as_pem(certificate(key, "Ada", issuer=root, signer=root_key, days=days)))
        chain = ("--certificate", tmp_path / f"{name}.crt", "-o", tmp_path / f"{name}.sig")
        story.ok("sign", "--key", tmp_path / "key.pem", *chain)
    story.ok("sign", "--key", keys / "private.pem", "-o", tmp_path / "key.sig")
    story.ok("checkout", "HEAD", tmp_path / "out")
    (tmp_path / "out" / "more.txt").write_text("more")
    (tmp_path / "none.sig").write_text("{}")
    mine, root_given = ("--key", keys / "public.pem"), ("--ca", tmp_path / "root.pem")
    for subject, trust, file, answer, words in (
        ("HEAD", ("--key", keys / "other.pem"), "key", "wrong_key", "another key made it than the one given"),
        ("HEAD~1", mine, "key", "other_commit", "it is over commit "),
        (tmp_path / "out", mine, "key", "other_files", "not signed: more.txt"),
        ("HEAD", root_given, "old", "expired_certificate", "the certificate of CN=Ada expired on "),
        ("HEAD", ("--ca", tmp_path / "stranger.pem"), "good", "untrusted_certificate", "leads to no root"),
        ("HEAD", mine, "none", "malformed_signature", "is not a sigstore bundle"),
    ):
        words_of = ("verify-signature", subject, *trust, "--signature", tmp_path / f"{file}.sig")
        found = story.json(*words_of, code=8)
        assert (found["status"], found["signatures"][0]["code"]) == ("bad", answer)
        told = story.run(*words_of)
        assert (told.exit_code, words in told.stdout) == (8, True), told.stdout
        assert len(told.stdout.splitlines()) == 4, "each says what to do"
    story.ok("verify-signature", "HEAD", *root_given, "--signature", tmp_path / "good.sig")


def test_where_one_holds_anothers_is_no_alarm(story: Story, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "third.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    for key in (tmp_path / "third.pem", keys / "private.pem"):
        story.ok("sign", "--key", key)
    lines = story.ok("verify-signature", "--key", keys / "public.pem").splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["not by whom you trust", "holds"]


def test_a_merged_checkout_is_signed(story: Story, keys: Path, tmp_path: Path) -> None:
    story.ok("checkout", "HEAD", tmp_path / "plain", "--form", "merged")
    refused = story.json("sign", "--key", keys / "private.pem", "-o", tmp_path / "plain", code=4)
    assert (refused["code"], refused["hint"]) == (
        "other_checkout",
        "Sign the form that it has: rbl sign HEAD --form merged",
    )
    text = story.ok("sign", "--form", "merged", "--key", keys / "private.pem", "-o", tmp_path / "plain")
    assert " as a merged checkout, " in text
    told = run("-C", tmp_path, "verify-signature", "plain", "--key", keys / "public.pem", "--json")
    assert (told.exit_code, json.loads(told.stdout)["status"]) == (0, "signed")


def test_a_key_that_is_encrypted_asks_for_its_password(story: Story, keys: Path) -> None:
    words = ["-C", str(story.store), "sign", "--key", str(keys / "hidden.pem")]
    told = CliRunner().invoke(rbl, words, input="let me in\n")
    assert told.exit_code == 2
    assert "let me in" not in told.stdout + told.stderr
    told = CliRunner().invoke(rbl, words, input="open sesame\n")
    assert told.exit_code == 0, told.stderr
    assert "open sesame" not in told.stdout + told.stderr


def test_an_encrypted_key_without_a_terminal_says_how_to_give_its_password(story: Story, keys: Path) -> None:
    words = ["-C", str(story.store), "sign", "--key", str(keys / "hidden.pem"), "--json"]
    told = CliRunner().invoke(rbl, words, input="")
    assert told.exit_code == 2
    assert '"code": "key_password"' in told.output
    assert "--password-file" in told.output


def test_a_branch_reaches_its_signatures(story: Story, keys: Path) -> None:
    before = story.json("du")["unreached"]
    story.ok("sign", "--key", keys / "private.pem")
    signed_verification(story, keys)
    assert story.json("du")["unreached"] == before


def signed_verification(story: Story, keys: Path) -> Any:
    story.ok("verify", "HEAD~2")
    verification = story.json("log", "HEAD~2")[0]["verifications"][0]["id"]
    return story.json("sign", "--verification", verification[:12], "--key", keys / "private.pem")


def test_a_verification_is_signed_as_an_in_toto_statement(story: Story, keys: Path, tmp_path: Path) -> None:
    import base64

    signed = signed_verification(story, keys)
    verification = signed["verification"]
    assert (signed["subject"], signed["files"]) == (verification, 0)
    found = story.json("verify-signature", "--verification", verification, "--key", keys / "public.pem")
    assert (found["status"], found["verification"]) == ("signed", verification)
    assert story.json("verify-signature", "HEAD~2", "--key", keys / "public.pem", code=1)["status"] == "unsigned"
    story.ok("sign", "--verification", verification, "--key", keys / "private.pem", "-o", tmp_path / "a.sig")
    bundle = json.loads((tmp_path / "a.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["predicate"]["verification"] == verification
    files = story.json("verify-signature", "HEAD~2", "--signature", tmp_path / "a.sig", code=8)
    assert files["signatures"][0]["code"] == "other_subject"
    story.ok("sign", "HEAD~2", "--key", keys / "private.pem", "-o", tmp_path / "b.sig")
    over = story.json("verify-signature", "--verification", verification, "--signature", tmp_path / "b.sig", code=8)
    assert over["signatures"][0]["code"] == "other_subject"
    story.ok("verify", "HEAD~2")  # another measurement, of the same commit
    again = story.json("log", "HEAD~2")[0]["verifications"][-1]["id"]
    if again != verification:
        other = story.json("verify-signature", "--verification", again, "--signature", tmp_path / "a.sig", code=8)
        assert other["signatures"][0]["code"] == "other_subject"


def test_bad_requests(story: Story, keys: Path, tmp_path: Path) -> None:
    assert story.json("sign", code=2)["code"] == "usage"
    assert story.json("sign", "--key", tmp_path / "none.pem", code=1)["code"] == "bad_input"
    assert story.json("sign", "--key", keys / "public.pem", code=1)["code"] == "bad_key"
    assert story.json("verify-signature", "--key", keys / "private.pem", code=1)["code"] == "bad_key"
    assert story.json("verify-signature", "nothing", "--key", keys / "public.pem", code=1)["code"] == "unknown_revision"
    missing = story.json("verify-signature", "--signature", tmp_path / "none.sig", code=1)
    assert missing["code"] == "not_found"
    verification = ("--verification", "abcdef12", "--key", keys / "private.pem")
    for words in (
        ("sign", "HEAD~1", *verification), ("sign", "--form", "merged", *verification),
        ("sign", "--key", keys / "private.pem", "--identity-token", keys / "password"),
    ):  # fmt: skip
        assert story.json(*words, code=2)["code"] == "usage"
    named = ("--verification", "abcdef12", "--key", keys / "public.pem")
    for subject in ("HEAD~1", tmp_path):
        assert story.json("verify-signature", subject, *named, code=2)["code"] == "usage"
    assert story.json("verify-signature", keys / "public.pem", "--key", keys / "public.pem", code=2)["code"] == "usage"
    (tmp_path / "a.sig").write_text("taken")
    assert story.json("sign", "--key", keys / "private.pem", "-o", tmp_path / "a.sig", code=4)["code"] == "exists"
    story.ok("sign", "--key", keys / "private.pem", "-o", tmp_path / "a.sig", "--force")


def test_a_behavior_is_forgotten(story: Story, tmp_path: Path) -> None:
    plan = story.ok("forget", "polite", "--reason", "its data was withdrawn")
    assert plan.splitlines()[-1] == "nothing was changed; to do it, for good: add --apply"
    story.ok("checkout", "HEAD", tmp_path / "before")
    done = story.json("forget", "polite", "--reason", "its data was withdrawn", "--apply", "--author", "Ada")
    assert (done["applied"], done["commits"], done["branches"]) == (True, 2, ["main"])
    for _ in range(2):
        assert story.ok("gc", "--apply", "--grace", "0")
    failure = story.json("checkout", "HEAD", tmp_path / "out", code=1)
    assert failure["code"] == "forgotten"
    assert "removed on purpose by Ada" in failure["error"]
    assert "its data was withdrawn" in failure["error"]
    assert "rbl revert" in failure["hint"]
    assert "removed on purpose, and no damage" in story.ok("fsck", "--full")
    assert "its data was withdrawn" in story.ok("show", "HEAD~1")
    assert "its data was withdrawn" in story.ok("audit")
    story.ok("log")
    story.ok("diff", "HEAD~2", "HEAD")
    assert story.json("forget", "polite", "--reason", "again", code=1)["code"] == "already_forgotten"
    story.ok("revert", "--behavior", "polite", "--no-verify")
    story.ok("checkout", "HEAD", tmp_path / "out")
