"""Ids: one spelling, parsed in one place, of kinds that do not mix."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from rblstore.errors import InputError, UsageError
from rblstore.objects.ids import CommitId, ContentId, Id, RecordId, is_full_id, parse_prefix

DIGITS = "0123456789abcdef" * 4


def test_an_id_is_its_text() -> None:
    commit = CommitId(DIGITS)
    assert commit == DIGITS
    assert commit.short == "0123456789ab"
    assert isinstance(commit, RecordId)
    assert not isinstance(commit, ContentId)
    assert type(pickle.loads(pickle.dumps(commit))) is CommitId


@pytest.mark.parametrize(
    "text",
    [
        "",
        DIGITS[:-1],
        DIGITS + "0",
        DIGITS.upper(),
        DIGITS[:-1] + "g",
        DIGITS[:-1] + "\n",
        DIGITS + "\n",
        " " + DIGITS[1:],
        "0x" + DIGITS[2:],
        DIGITS[:-1] + "\u0660",
        DIGITS[:-1] + "\uff11",
        "g" * 10_000,
    ],
    ids=lambda text: repr(text[-12:]),
)
def test_other_text_is_refused(text: str) -> None:
    assert not is_full_id(text)
    with pytest.raises(InputError, match="not an object id") as caught:
        Id(text)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("value", [None, 5, 1.5, True, [], {}, b"0" * 64], ids=repr)
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="is not an object id"):
        ContentId(value)


@pytest.mark.parametrize("text", [DIGITS[:6], DIGITS[:6].upper(), DIGITS[:63], DIGITS])
def test_prefix(text: str) -> None:
    assert parse_prefix(text) == text.lower()


@pytest.mark.parametrize(
    "text", ["", "abcde", DIGITS + "0", "abcdeg", "abcdef\n", " abcdef", "İ" * 6, "main", "-abcdef"]
)
def test_no_prefix(text: str) -> None:
    with pytest.raises(UsageError, match="or a prefix of one") as caught:
        parse_prefix(text)
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None
