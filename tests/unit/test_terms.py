"""Texts of licences that people give: stored with their statement, read back, and kept as long as that is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny

import rblstore
from rblstore.objects.evidence_records import Statement
from rblstore.objects.ids import ContentId

ROOT = Path(__file__).parents[2]
OWN = b"Terms of our own.\r\nDo no harm. \xff\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    base = tiny.write_base(tmp_path / "base")
    (base / "NOTICE").write_text("Made by Ada.\n")
    (tmp_path / "terms.txt").write_bytes(OWN)
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base, license_file=tmp_path / "terms.txt", author="Ada")
        yield repo


def texts(repo: Any, name: str = "identity") -> dict[str, str | None]:
    return {text.path: text.text for text in repo.license_texts(name).texts}


def test_what_was_given_and_what_lies_beside_the_weights_is_read_back(repo: Any, tmp_path: Path) -> None:
    found = repo.license_texts("identity")
    assert [(text.path, text.sha256, text.by) for text in found.texts] == [
        ("NOTICE", sha256(b"Made by Ada.\n"), ""), ("terms.txt", sha256(OWN), ""),
    ]  # fmt: skip
    assert texts(repo) == {"NOTICE": "Made by Ada.\n", "terms.txt": "Terms of our own.\r\nDo no harm. \ufffd\n"}
    assert repo._store.content_bytes(ContentId(sha256(OWN)), 1 << 20) == OWN
    (statement,) = repo.statements("identity").statements
    record = repo._store.record(statement.statement, Statement)
    assert record.contents == (sha256(OWN),)
    assert repo.fsck(full=True).ok


def test_a_later_text_takes_the_place_of_one_that_somebody_gave(repo: Any) -> None:
    said = repo.state("identity", license_file=ROOT / "LICENSE").said
    assert [text.path for text in said.texts] == ["LICENSE", "NOTICE"]
    assert said.declared == ("Apache-2.0",)
    assert (texts(repo)["LICENSE"] or "").startswith((ROOT / "LICENSE").read_text()[:1000])


def test_gc_keeps_them_and_reindex_finds_them(repo: Any, tmp_path: Path) -> None:
    repo.state("identity", license_file=ROOT / "LICENSE")
    for pack in (tmp_path / "store" / ".rbl" / "packs").rglob("*.pack"):
        os.utime(pack, (0, 0))
    for _ in range(2):
        repo.gc(apply=True, grace_days=0)
    repo.repack()
    assert repo._store.has(ContentId(sha256(OWN)))  # superseded, and still what somebody said
    repo.close()
    (tmp_path / "store" / ".rbl" / "catalog.db").unlink()
    rblstore.reindex(tmp_path / "store")
    with rblstore.open(tmp_path / "store") as again:
        assert (texts(again)["LICENSE"] or "").startswith((ROOT / "LICENSE").read_text()[:1000])
        assert again.fsck(full=True).ok


def test_a_text_that_is_lost_is_damage(repo: Any, tmp_path: Path) -> None:
    before = set((tmp_path / "store" / ".rbl" / "packs").rglob("*.pack"))
    repo.state("identity", license_file=ROOT / "LICENSE")
    for pack in set((tmp_path / "store" / ".rbl" / "packs").rglob("*.pack")) - before:
        if pack.read_bytes()[8:9] == b"C":
            pack.unlink()
    repo.close()
    rblstore.reindex(tmp_path / "store")
    with rblstore.open(tmp_path / "store") as again:
        damages = again.fsck().damages
        assert sha256((ROOT / "LICENSE").read_bytes()) in {damage.object for damage in damages}
        assert any("statement" in need for damage in damages for need in damage.needed_by)
        assert texts(again)["LICENSE"] is None  # it is said that it is not there; nothing is made up


def test_it_outlives_what_it_is_about(repo: Any, tmp_path: Path) -> None:
    polite = tiny.write_adapter(tmp_path / "polite")
    (polite / "LICENSE").write_bytes(OWN)
    repo.commit("polite", behaviors={"polite": polite}, license_file=tmp_path / "terms.txt")
    repo.forget("polite", reason="withdrawn", apply=True)
    for pack in (tmp_path / "store" / ".rbl" / "packs").rglob("*.pack"):
        os.utime(pack, (0, 0))
    for _ in range(2):
        repo.gc(apply=True, grace_days=0)
    assert texts(repo, "polite")["terms.txt"] is not None
    assert repo.fsck(full=True).ok


def test_what_it_takes_is_counted_to_what_it_is_about(repo: Any, tmp_path: Path) -> None:
    assert repo.du().unreached.contents == 0
    polite = tiny.write_adapter(tmp_path / "polite")
    (polite / "LICENSE").write_bytes(OWN)
    repo.commit("polite", behaviors={"polite": polite})
    plan = repo.forget("polite", reason="withdrawn")
    assert plan.shared == 1  # what Ada gave about the identity stays
    repo.state("polite", license="mit", meta={"note": f'],"contents":["{"0" * 64}"],"subject":'})
    assert repo.du().unreached.contents == 0


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"x" * ((1 << 20) + 1), "longer than"), (None, "cannot be")],
)
def test_what_is_no_licence_is_refused(repo: Any, tmp_path: Path, data: bytes | None, why: str) -> None:
    if data is not None:
        (tmp_path / "bad").write_bytes(data)
    with pytest.raises(rblstore.InputError, match=why) as refused:
        repo.state("identity", license_file=tmp_path / "bad")
    assert refused.value.hint
    assert len(repo.statements("identity").statements) == 1
