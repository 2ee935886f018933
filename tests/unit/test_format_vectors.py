"""docs/format.md and the code say the same: every test vector, the tensor root, the limits and the kinds."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

from rblstore.checkpoints.checkout_layout import CheckoutManifest
from rblstore.configuration import Configuration
from rblstore.objects import limits
from rblstore.objects.kinds import KINDS, parse_record
from rblstore.storage import codecs, planes
from rblstore.storage.refs_log import parse_log

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "format.md").read_text("utf-8")
VECTORS = re.findall(r"```vector\n(.*?)\n```\n\nid `([0-9a-f]{64})`", PAGE, re.DOTALL)


def section(heading: str) -> str:
    return re.split(r"\n#+ ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1)[0]


def test_every_kind_has_one_vector_and_one_section() -> None:
    assert sorted(text.split("/", 2)[1] for text, _ in VECTORS) == sorted(KINDS)
    for kind in KINDS:
        assert f"\nrblstore/{kind}/1\n" in section(kind)


@pytest.mark.parametrize(("text", "expected"), VECTORS, ids=[text.split("/", 2)[1] for text, _ in VECTORS])
def test_vector(text: str, expected: str) -> None:
    data = text.encode()
    assert hashlib.sha256(data).hexdigest() == expected
    record = parse_record(data)
    assert record.encode() == data
    assert record.id_of(data) == expected
    assert type(record.id_of(data)) is type(record).ID


@pytest.mark.parametrize(("text", "expected"), VECTORS, ids=[text.split("/", 2)[1] for text, _ in VECTORS])
def test_members_of_the_table_are_the_members_of_the_record(text: str, expected: str) -> None:
    kind = text.split("/", 2)[1]
    # What is there "only where there are some" is in no vector.
    rows = re.findall(
        r"^\| ((?:`[a-z_\[\].]+`(?:, )?)+) \|(?!.*only where there are some)", section(kind), re.MULTILINE
    )
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert documented == set(parse_record(text.encode()).body())


def test_tensor_root_example() -> None:
    found = re.search(r"```tensor-root\n(.*?\n)```\n\ntensor root `([0-9a-f]{64})`", PAGE, re.DOTALL)
    assert found is not None
    assert hashlib.sha256(found[1].encode()).hexdigest() == found[2]
    (identity,) = (text for text, _ in VECTORS if text.startswith("rblstore/identity/"))
    assert f'"tensor_root":"{found[2]}"' in identity


def test_content_examples() -> None:
    rows = re.findall(r"^\| .* \| `([0-9a-f ]+)` \| `([0-9a-f]{64})` \|$", PAGE, re.MULTILINE)
    contents = [bytes.fromhex(row) for row, _ in rows]
    assert [hashlib.sha256(content).hexdigest() for content in contents] == [digest for _, digest in rows]
    assert len(contents) == 4
    whole = hashlib.sha256(b"".join(contents[1:])).hexdigest()
    assert f"| {sum(map(len, contents[1:]))} bytes | `{whole}` |" in PAGE


def test_the_script_writes_the_page_as_it_is() -> None:
    script = runpy.run_path(str(ROOT / "tests" / "golden" / "make_vectors.py"))
    assert script["filled_page"](PAGE) == PAGE


CODECS = re.findall(r"```codec\n(.*?)\n```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", CODECS, ids=[text.split("\n")[0] + str(at) for at, text in enumerate(CODECS)])
def test_frames_decode(text: str) -> None:
    said = dict(line.split(" ", 1) for line in text.split("\n"))
    numbers = {name: codec for codec, name in codecs.NAMES.items()}
    codec = numbers[said.pop("codec")]
    data = {name: bytes.fromhex(value) for name, value in said.items()}
    assert len(data["stored"]) < len(data["raw"])
    base = data.get("base")
    assert (codec == codecs.DELTA) == (base is not None)
    raw = codecs.decode_frame(codec, data["parameters"], data["stored"], len(data["raw"]), base=base)
    assert bytes(raw) == data["raw"]
    # And the code that encodes finds the same transform by itself.
    found = codecs.encode_frame(data["raw"], "fast", element_width=data["parameters"][0], base=base)
    assert (found.codec, found.parameters) == (codec, data["parameters"])


def test_codecs_and_transforms_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-zA-Z]+)` \|(?: `([a-z]+)` \|)?", section("Codecs"), re.MULTILINE)
    assert {int(number): name for number, name, codec in rows if not codec} == dict(codecs.NAMES)
    for number, name, codec in rows:
        if codec:
            assert getattr(planes, name) == int(number)
            parameters = planes.Layout(2, int(number), 0).encode()
            assert planes.Layout.parse(parameters, delta=codec == "delta").transform == int(number)
    used = {tuple(text.split("\n")[1].split(" ")[1][:4]) for text in CODECS}
    assert len(used) == len(CODECS) == 3
    bits = [f"{worth:g}" for worth in planes._WORTH_BITS.values()]
    assert all(f"{worth}" in section("Codecs") for worth in bits)


def test_checkout_example_is_one_that_is_read() -> None:
    found = re.search(r"```json\n(.*?\n)```", section("Checkouts"), re.DOTALL)
    assert found is not None
    manifest = CheckoutManifest.parse(found[1].encode())
    documented = set(
        re.findall(r"`([a-z0-9_]+)`", "".join(re.findall(r"^\|(.*?)\|", section("Checkouts"), re.MULTILINE)))
    )
    assert documented >= set(json.loads(found[1]))
    commits = [text for text, _ in VECTORS if text.startswith("rblstore/commit/")]
    assert manifest.commit == hashlib.sha256(commits[0].encode()).hexdigest()


def test_log_example_is_one_that_is_read() -> None:
    found = re.search(r"```refs-log\n(.*?\n)```", PAGE, re.DOTALL)
    assert found is not None
    log = parse_log(found[1].encode())
    assert (len(log.operations), log.torn) == (1, False)
    assert any(log.operations[0].encode().decode() == text for text, _ in VECTORS)


def test_settings_of_the_configuration() -> None:
    names = re.findall(r"^\| `([a-z.]+)` \|", section("Directory"), re.MULTILINE)
    days = {"gc.grace": "grace_days", "gc.operations": "operation_days"}
    told = {days.get(name, name.rsplit(".", 1)[-1]) for name in names}
    assert told == {field.name for field in fields(Configuration)}


def test_limits_table_equals_the_code() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([0-9,]+) \| \S", section("Limits"), re.MULTILINE)
    documented = {name: int(value.replace(",", "")) for name, value in rows}
    assert documented == {name: value for name, value in vars(limits).items() if name.isupper()}
