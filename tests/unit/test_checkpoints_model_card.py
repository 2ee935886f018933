from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from rblstore.checkpoints.model_card import FRONT_MATTER_BYTES, claims_from_files
from rblstore.objects import limits
from rblstore.objects.evidence_records import Claim


def claims(**files: bytes) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    found, warnings = claims_from_files({_path(name): (lambda data=data: data) for name, data in files.items()})
    unread = [claim for claim in found if claim.key == "not_read"]
    assert sorted(f"{claim.origin}: {claim.value}" for claim in unread) == sorted(
        warnings
    )  # whoever audits learns it, too
    return [(claim.key, claim.value) for claim in found if claim not in unread], warnings


def _path(name: str) -> str:
    return {"readme": "README.md", "config": "config.json", "adapter": "adapter_config.json"}.get(name, name)


def card(matter: str) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    return claims(readme=f"---\n{matter}\n---\n# A model\nlicense: not this one\n".encode())


def test_the_front_matter_s_claims() -> None:
    found, warnings = card(
        "language:\n- en\nlicense: other\nlicense_name: gemma\nlicense_link: https://example.org/terms\n"
        "base_model: google/gemma\nbase_model_relation: finetune\n"
        "datasets:\n- one/set\n- two\ntags:\n- lora\nmodel-index: [{a: 1}]"
    )
    assert warnings == ()
    assert found == [
        ("base_model", "google/gemma"),
        ("base_model_relation", "finetune"),
        ("dataset", "one/set"),
        ("dataset", "two"),
        ("language", "en"),
        ("license", "other"),
        ("license_link", "https://example.org/terms"),
        ("license_name", "gemma"),
    ]


def test_each_claim_names_its_file() -> None:
    found, _ = claims_from_files({"README.md": lambda: b"---\nlicense: mit\n---\n"})
    assert found == (Claim("license", "mit", "README.md"),)


def test_scalars_stay_text() -> None:
    assert card("license: no\nlanguage: [no, on]\nlicense_name: 1.10\nbase_model: 2024-01-01") == (
        [
            ("base_model", "2024-01-01"),
            ("language", "no"),
            ("language", "on"),
            ("license", "no"),
            ("license_name", "1.10"),
        ],
        (),
    )


@pytest.mark.parametrize("value", ["", "null", "~", "''"])
def test_what_is_empty_is_no_claim(value: str) -> None:
    assert card(f"license: {value}") == ([], ())


@pytest.mark.parametrize("value", ["{a: b}", "[[nested]]", "[{a: b}, [c]]", "!!set {a, b}"])
def test_what_is_no_text_is_a_warning(value: str) -> None:
    why = "README.md: license is neither text nor a list of texts; it is not recorded"
    assert card(f"license: {value}") == ([], (why,))


def test_lists_give_one_claim_each_and_repeats_one() -> None:
    assert card("base_model: [b, a, b]") == ([("base_model", "a"), ("base_model", "b")], ())


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
def test_front_matter_is_found_however_it_was_saved(newline: str, start: str) -> None:
    text = start + newline.join(["---", "license: mit", "---", "text", ""])
    assert claims(readme=text.encode()) == ([("license", "mit")], ())


@pytest.mark.parametrize(
    "text",
    ["", "# Title\n---\nlicense: mit\n---\n", "---\nA rule above.\n", "license: mit", "---\n---\n", "---\n- a\n---\n"],
)
def test_no_front_matter_is_no_claim(text: str) -> None:
    assert claims(readme=text.encode()) == ([], ())


@pytest.mark.parametrize("text", ["---\nlicense: mit\n", "\ufeff---\r\ntags:\r\n- x\r\nlicense: mit\r\n# Title\r\n"])
def test_front_matter_without_an_end_is_a_warning(text: str) -> None:
    assert claims(readme=text.encode()) == (
        [],
        ("README.md: its front matter has no end; nothing that it says is recorded",),
    )


@pytest.mark.parametrize(
    ("matter", "why"),
    [
        ("license: &a mit\nlicense_name: *a", "aliases"),
        ("a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]", "aliases"),
        ("a: " + "[" * 5000, "nested deeper"),
        ("a: " + "{a: " * 5000, "nested deeper"),
        ("license: mit\nlicense: gpl", "'license' twice"),
        ("license: [mit", "not valid YAML"),
        ("license: mit\n\tb: c", "not valid YAML"),
        ("x: \x00", "not valid YAML"),
        ("a: b\n#" + "x" * FRONT_MATTER_BYTES, "longer than"),
    ],
)
def test_hostile_front_matter_gives_a_warning_and_no_claim(matter: str, why: str) -> None:
    found, warnings = card(matter)
    assert found == []
    assert len(warnings) == 1
    assert warnings[0].startswith("README.md: ")
    assert why in warnings[0]


def test_tags_construct_nothing(tmp_path: object) -> None:
    found, _ = card(f"license: !!python/object/apply:os.system ['touch {tmp_path}/made']\nlicense_name: !!binary aGk=")
    assert ("license_name", "aGk=") in found
    assert list(__import__("pathlib").Path(str(tmp_path)).iterdir()) == []


def test_control_characters_and_long_values_are_not_recorded() -> None:
    found, warnings = card('license: "\\x1b[31mred"\nlicense_name: ' + "x" * (limits.TEXT_BYTES + 1) + "\nlanguage: en")
    assert found == [("language", "en")]
    assert len(warnings) == 2


def test_a_card_that_is_too_long_or_not_text_is_passed_over() -> None:
    for data in (b"---\nlicense: mit\n---\n" + b"x" * limits.MODEL_CARD_BYTES, b"---\nlicense: \xff\n---\n"):
        found, warnings = claims(readme=data)
        assert found == []
        assert len(warnings) == 1


def test_claims_are_bounded() -> None:
    found, warnings = card("datasets:\n" + "".join(f"- d{number}\n" for number in range(3000)))
    assert len(found) == 1000
    assert len(warnings) == 1


def test_the_names_that_configs_give() -> None:
    config = json.dumps({"_name_or_path": "org/base", "architectures": ["X"]}).encode()
    adapter = json.dumps({"base_model_name_or_path": "org/base", "revision": "abc123"}).encode()
    assert claims(config=config, adapter=adapter) == (
        [("base_model", "org/base"), ("base_revision", "abc123"), ("name", "org/base")],
        (),
    )
    adapter = json.dumps({"base_model_name_or_path": "org/base", "revision": None}).encode()
    assert claims(adapter=adapter) == ([("base_model", "org/base")], ())


@pytest.mark.parametrize("data", [b"[]", b'{"_name_or_path": null}', b'{"_name_or_path": 3}', b'{"_name_or_path": ""}'])
def test_configs_without_a_name_make_no_claim(data: bytes) -> None:
    assert claims(config=data) == ([], ())


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": NaN}', b'{"a":1,"a":2}', b"\xff"])
def test_malformed_configs_give_a_warning(data: bytes) -> None:
    found, warnings = claims(config=data)
    assert found == []
    assert warnings[0].startswith("config.json: ")


def test_licence_files_are_claims_by_digest() -> None:
    files = {
        "LICENSE": b"a",
        "LICENSE.txt": b"b",
        "NOTICE": b"c",
        "USE_POLICY.md": b"d",
        "sub/LICENCE": b"e",
        "licenses.json": b"f",
    }
    found, warnings = claims(**files)
    assert warnings == ()
    assert [value for _, value in found] == sorted(
        f"{path} sha256:{hashlib.sha256(data).hexdigest()}" for path, data in files.items() if path != "licenses.json"
    )
    assert {key for key, _ in found} == {"license_file"}


def test_only_the_files_that_matter_are_read() -> None:
    def unread() -> bytes:
        raise AssertionError("read")

    assert claims_from_files({"model.safetensors": unread, "sub/README.md": unread, "sub/config.json": unread}) == (
        (),
        (),
    )


def test_yaml_is_not_imported_until_a_card_is_read() -> None:
    program = "import sys, rblstore.checkpoints.model_card; sys.exit('yaml' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
