"""config.toml is data, and a file from outside: what it may not say, and what it must not cost."""

from __future__ import annotations

import pytest

from rblstore.configuration import DEFAULT_TEXT, Configuration, parse_configuration
from rblstore.errors import InputError


def test_what_is_written_is_what_there_would_be_without_it() -> None:
    assert parse_configuration(DEFAULT_TEXT.encode()) == parse_configuration(b"") == Configuration()


@pytest.mark.parametrize(
    "text",
    [
        "[storage]\nthreads = 0x" + "f" * 6000,
        "[storage]\nthreads = [0x" + "f" * 6000 + "]",
        "[gc]\ngrace = " + "9" * 5000,
        "[gc]\ngrace = true",
        "[gc]\noperations = -1",
        "gc = 1",
        "a = " + "[" * 60_000,
        "a = 9999-99-99",
        "[storage]\ncompression = '" + "x" * 60_000 + "'",
        "'" + "x" * 60_000 + "' = 1",
        "\x00",
    ],
    ids=lambda text: text[:30],
)
def test_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^config\.toml: ") as caught:
        parse_configuration(text.encode())
    assert len(caught.value.message) < 400


def test_keys_of_many_parts_are_refused_before_they_are_parsed() -> None:
    """The parser takes the square of their number, in time and memory."""
    for key in ("a." * 32_000 + "a", ".".join(['"a"'] * 16_000)):
        with pytest.raises(InputError, match="more than 1000 dots"):
            parse_configuration(f"{key} = 1".encode())
