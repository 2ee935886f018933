"""What strangers write about models: cards, licence texts, expressions and claims that are made to hurt."""

from __future__ import annotations

import random
from pathlib import Path

import bombs
import pytest
import tiny_checkpoints

import rblstore
from rblstore.objects.evidence_records import Claim
from rblstore.operations.told import Told
from rblstore.provenance.license_texts import recognise
from rblstore.provenance.licenses import LicenseError, alternatives, keys_of, nearest, normalise
from rblstore.provenance.said import said

NAMES = ("MIT", "Apache-2.0", "gpl-3.0+", "llama3.1", "LicenseRef-a", "openrail++", "(zlib or isc)", "gpl-2.0")
WORDS = (
    *NAMES, "AND", "OR", "WITH", "(", ")", " ", "  ", "+", "/", ",", ":", "=", "@", "\0", "DocumentRef-", "LicenseRef-",
    "Classpath-exception-2.0", "NOASSERTION", "NONE", "é", "\ud800", "\n", "x" * 300, "other", "and", "or", "with", "*",
    "-", ".", "_", "sha256:", "a" * 64, " by text", " by title", "org/name", "%s", "{}", "\\",
)  # fmt: skip
KEYS = (
    "license", "license_name", "license_file", "license_concluded", "license_link", "dataset", "dataset_license",
    "source", "source_revision", "base_model", "base_revision", "base_model_relation", "name", "meta.step", "", "x",
)  # fmt: skip
ORIGINS = ("README.md", "LICENSE", "api", "command line", "training run", "hub cache", "")


def _text(chance: random.Random) -> str:
    return chance.choice(("", " ")).join(chance.choices(WORDS, k=chance.randrange(12)))


def _expression(chance: random.Random) -> str:
    """One that parses, mostly, until somebody writes into it."""
    words = [chance.choice(NAMES)]
    for _ in range(chance.randrange(6)):
        words += [chance.choice(("AND", "or", "OR", "and")), chance.choice(NAMES)]
    if chance.random() < 0.4:
        words[chance.randrange(len(words))] = chance.choice(WORDS)
    return " ".join(words)


def test_expressions_parse_or_are_refused() -> None:
    chance = random.Random(0x11C)
    parsed = refused = 0
    for number in range(2000):
        text = _expression(chance) if number % 2 else _text(chance)
        try:
            expression = normalise(text)
        except LicenseError:
            refused += 1
            continue
        parsed += 1
        assert normalise(expression) == expression, text
        assert keys_of(expression) == frozenset().union(*alternatives(expression)), text
    assert min(parsed, refused) > 500  # else little was tried


def test_names_that_look_like_nothing() -> None:
    chance = random.Random(0x2EA2)
    for _ in range(50):
        assert len(nearest(_text(chance))) <= 3


def test_claims_never_stop_an_audit() -> None:
    chance = random.Random(0x5A1D)
    for _ in range(1000):
        claims = [
            Claim(chance.choice(KEYS), _text(chance), chance.choice(ORIGINS)) for _ in range(chance.randrange(1, 12))
        ]
        found = said(claims)
        assert found == said(claims[::-1])
        for expression in (*found.declared, *(one for data in found.datasets for one in data.licenses)):
            assert normalise(expression) == expression


@pytest.mark.parametrize("data", [b"", b"\xff" * 1000, b"\0" * (1 << 20), b"(c) " * (1 << 17), b"1. " * (1 << 18)])
def test_texts(data: bytes) -> None:
    assert recognise(data) is None


@pytest.mark.parametrize("number", range(0, len(bombs.CARDS), 3))
def test_cards_are_committed_and_believed_by_nobody(number: int, tmp_path: Path) -> None:
    base = tiny_checkpoints.write_base(tmp_path / "base")
    (base / "README.md").write_bytes(bombs.CARDS[number])
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        repo.statements("identity").as_json()
        repo.audit()
        assert repo.fsck().ok


def test_what_a_person_gives_is_refused_by_our_own_errors() -> None:
    chance = random.Random(0x701D)
    for _ in range(150):
        told = Told(
            license=chance.choice((None, _text(chance))),
            datasets=[_text(chance) for _ in range(chance.randrange(3))],
            source=chance.choice((None, _text(chance))),
            base_revision=chance.choice((None, _text(chance))),
            concluded=chance.choice((None, _text(chance))),
            meta={_text(chance): _text(chance)} if chance.random() < 0.3 else {},
        )
        try:
            claims = told.claims("api")
        except rblstore.RblError:
            continue
        assert not [problem for problem in said(claims).problems if "is not a licence" in problem]
