"""Licence texts: recognised by all of their words, or by their title, and told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from rblstore.provenance.license_texts import DIGESTS, TITLES, digest, recognise
from rblstore.provenance.licenses import normalise

ROOT = Path(__file__).parents[2]
COMMON = Path("/usr/share/common-licenses")
MIT = """MIT License

Copyright (c) 2026 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def test_the_repositorys_own_licence() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert recognise(text) == ("Apache-2.0", "text")
    assert recognise(text + b"\nNot for commercial use.\n") == ("Apache-2.0", "title")


@pytest.mark.parametrize(
    "same",
    [
        MIT,
        MIT.replace("\n", "\r\n").upper(),
        MIT.replace("MIT License", "# The MIT License (MIT)").replace("(c) 2026 Somebody", "© 2019-2026 A, B"),
        " ".join(MIT.partition("Somebody")[2].split()),
        MIT.replace("Somebody", "Somebody\nCopyright 2027 Somebody else\nAll rights reserved."),
    ],
)
def test_copies_that_mean_the_same(same: str) -> None:
    assert recognise(same.encode()) == ("MIT", "text")


@pytest.mark.parametrize(
    "other",
    [
        MIT.replace("sell", "lend"),
        MIT.replace("without restriction", "with restriction"),
        MIT + "\nCommercial use is not permitted.",
        MIT.replace("Somebody", "Somebody. For research use only."),
        MIT[:-100],
        "",
        "MIT",
        "This model is under the Gemma Terms of Use.",
    ],
)
def test_what_means_something_else(other: str) -> None:
    assert recognise(other.encode()) is None


@pytest.mark.parametrize(
    ("beginning", "expression"),
    [
        ("Gemma Terms of Use\n\nLast modified: ...", "LicenseRef-scancode-gemma-tou-2024-04-01"),
        ("# LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "LicenseRef-scancode-llama-3.1-license-2024"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "LicenseRef-rbl-llama3"),
        ("CreativeML Open RAIL-M\ndated August 22, 2022", "LicenseRef-scancode-stable-diffusion-2022-08-22"),
        ("CreativeML Open RAIL++-M License\ndated July 26, 2023", "LicenseRef-rbl-openrail-plus-plus"),
        ("  GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007", "AGPL-3.0-only"),
        ("Attribution-NonCommercial 4.0 International\n====", "CC-BY-NC-4.0"),
        ("Attribution 4.0 International\n====", "CC-BY-4.0"),
    ],
)
def test_titles(beginning: str, expression: str) -> None:
    assert recognise(beginning.encode()) == (expression, "title")


def test_the_tables_name_keys() -> None:
    for expression in {*DIGESTS.values(), *TITLES.values()}:
        assert normalise(expression) == expression
    assert all(title == title.lower() and title.isascii() for title in TITLES)


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("Apache-2.0", "Apache-2.0"),
        ("CC0-1.0", "CC0-1.0"),
        ("GPL-2", "GPL-2.0-only"),
        ("GPL-3", "GPL-3.0-only"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("LGPL-3", "LGPL-3.0-only"),
        ("MPL-2.0", "MPL-2.0"),
    ],
)
def test_texts_as_a_distribution_ships_them(name: str, expression: str) -> None:
    if not (COMMON / name).is_file():
        pytest.skip(f"{COMMON} has no {name}")
    assert DIGESTS[digest((COMMON / name).read_text("utf-8"))] == expression


def test_what_is_too_long_or_no_text() -> None:
    assert recognise(MIT.encode() + b" " * (1 << 20)) is None
    assert recognise(b"\xff\xfe\x00" * 1000) is None
