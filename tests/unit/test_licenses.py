"""Licence expressions: what cards and people write, in one form; and what is none, refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rblstore.provenance.hub_licenses import FAMILIES, HUB_LICENSES
from rblstore.provenance.licenses import (
    NOASSERTION,
    LicenseError,
    alternatives,
    covers,
    keys_of,
    named,
    nearest,
    normalise,
)

GEMMA = "LicenseRef-scancode-gemma-tou-2024-04-01"
LLAMA = "LicenseRef-scancode-llama-3.1-license-2024"


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("  APACHE-2.0\n", "Apache-2.0"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("GPL-3.0+", "GPL-3.0-or-later"),
        ("bsl-1.0", "BSL-1.0"),  # Boost on the hub and in SPDX, Business Source for scancode
        ("gemma", GEMMA),
        ("gemma-tou-2024-04-01", GEMMA),
        ("llama3.1", LLAMA),
        ("llama3", "LicenseRef-rbl-llama3"),
        ("openrail++", "LicenseRef-rbl-openrail-plus-plus"),
        ("mit or llama3.1", f"{LLAMA} OR MIT"),
        ("MIT OR (Apache-2.0 OR mit)", "Apache-2.0 OR MIT"),
        ("mit and (zlib or cc0-1.0)", "(CC0-1.0 OR Zlib) AND MIT"),
        ("mit or (zlib or isc) and (isc or zlib)", "ISC OR MIT OR Zlib"),
        ("mit and (mit or mit)", "MIT"),
        ("gpl-2.0 WITH classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("LicenseRef-ours-1", "LicenseRef-ours-1"),
        ("DocumentRef-a:LicenseRef-b", "DocumentRef-a:LicenseRef-b"),
        ("other", NOASSERTION),
        ("unknown", NOASSERTION),
        ("noassertion", NOASSERTION),
    ],
)
def test_one_form(text: str, expression: str) -> None:
    assert normalise(text) == expression
    assert normalise(expression) == expression


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "my own", "MIT AND", "AND", "WITH", "()", "(MIT", "MIT)", "MIT/Apache-2.0", "MIT, Apache-2.0",
        "MIT MIT", "MIT WITH Apache-2.0", "Classpath-exception-2.0", "MIT AND NOASSERTION", "LicenseRef-a_b",
        "MIT ( OR MIT AND", "LicenseRef-", "é", "\0", "MIT\ud800", "x" * 5000,
        "(" * 51 + "MIT" + ")" * 51, "MIT OR (" * 400 + "MIT" + ")" * 400,
    ],
)  # fmt: skip
def test_what_is_no_licence(text: str) -> None:
    with pytest.raises(LicenseError) as refused:
        normalise(text)
    assert len(refused.value.message) < 300


def test_every_name_of_the_table_has_its_key() -> None:
    for name, key in HUB_LICENSES.items():
        assert normalise(name) == normalise(name.upper()) == key
        assert normalise(key) == key, f"{name}: {key} is no key"
    assert set(FAMILIES) <= set(HUB_LICENSES.values())


def test_keys_and_choices() -> None:
    expression = normalise("apache-2.0 and (mit or gpl-2.0 with classpath-exception-2.0)")
    both = {"GPL-2.0-only", "Classpath-exception-2.0"}
    assert keys_of(expression) == {"Apache-2.0", "MIT", *both}
    assert set(alternatives(expression)) == {frozenset({"Apache-2.0", "MIT"}), frozenset({"Apache-2.0", *both})}
    assert (keys_of(NOASSERTION), alternatives(NOASSERTION)) == (frozenset(), ())
    many = " AND ".join(f"(LicenseRef-a{at} OR LicenseRef-b{at})" for at in range(40))
    with pytest.raises(LicenseError, match="256 choices"):
        alternatives(many)


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        ("Apache-2.0 OR MIT", "MIT", True),
        ("Apache-2.0", "MIT", False),
        ("GPL-3.0-or-later", "GPL-3.0-only", True),
        ("GPL-1.0-or-later", "GPL-3.0-only", True),
        ("GPL-3.0-or-later", "GPL-2.0-only", False),
        ("GPL-3.0-only", "AGPL-3.0-only", False),
        ("GPL-2.0-only", "GPL-3.0-only", False),
    ],
)
def test_what_a_text_may_be(declared: str, text: str, expected: bool) -> None:
    assert covers(declared, text) is expected


def test_a_name_that_a_card_gives() -> None:
    assert named("Gemma") == GEMMA
    assert named("My Own  Licence (v2)") == "LicenseRef-rbl-my-own-licence-v2"
    assert normalise(named("x" * 5000)) == "LicenseRef-rbl-" + "x" * 100
    assert named("???") == NOASSERTION


def test_what_looks_like_it() -> None:
    assert "Apache-2.0" in nearest("apche-2.0")
    assert "llama3.1" in nearest("lama3.1")
    assert nearest("x" * 10_000) == ()


def test_nobody_pays_for_the_index_who_names_no_licence() -> None:
    code = "import sys, rblstore.provenance.said, rblstore.operations.told; print('license_expression' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
