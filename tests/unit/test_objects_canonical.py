"""Canonical JSON: RFC 8785's own examples out, and nothing but the strict subset in."""

from __future__ import annotations

import json
import struct

import pytest

from rblstore.errors import InputError
from rblstore.objects import canonical, limits
from rblstore.objects.canonical import decode_json, encode_json, record_body, record_bytes, record_kind, sha256_hex


def decode(data: bytes, **caps: int) -> object:
    return decode_json(data, what="a file", max_bytes=caps.pop("max_bytes", 1 << 20), **caps)  # type: ignore[arg-type]


class TestEncoding:
    def test_example_of_the_rfc(self) -> None:
        # RFC 8785, section 3.2.2 and 3.2.3
        value = {
            "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
            "literals": [None, True, False],
        }
        assert encode_json(value) == (
            b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        )

    def test_keys_are_sorted_by_utf16_units(self) -> None:
        # RFC 8785, section 3.2.3
        value = {
            "\u20ac": "Euro Sign",
            "\r": "Carriage Return",
            "\ufb33": "Hebrew Letter Dalet With Dagesh",
            "1": "One",
            "\U0001f600": "Emoji: Grinning Face",
            "\u0080": "Control",
            "\u00f6": "Latin Small Letter O With Diaeresis",
        }
        assert list(json.loads(encode_json(value)).values()) == [
            "Carriage Return",
            "One",
            "Control",
            "Latin Small Letter O With Diaeresis",
            "Euro Sign",
            "Emoji: Grinning Face",
            "Hebrew Letter Dalet With Dagesh",
        ]

    @pytest.mark.parametrize(
        ("bits", "text"),
        [
            # RFC 8785, appendix B
            (0x0000000000000000, b"0"),
            (0x8000000000000000, b"0"),
            (0x0000000000000001, b"5e-324"),
            (0x8000000000000001, b"-5e-324"),
            (0x7FEFFFFFFFFFFFFF, b"1.7976931348623157e+308"),
            (0xFFEFFFFFFFFFFFFF, b"-1.7976931348623157e+308"),
            (0x4340000000000000, b"9007199254740992"),
            (0xC340000000000000, b"-9007199254740992"),
            (0x4430000000000000, b"295147905179352830000"),
            (0x44B52D02C7E14AF5, b"9.999999999999997e+22"),
            (0x44B52D02C7E14AF6, b"1e+23"),
            (0x44B52D02C7E14AF7, b"1.0000000000000001e+23"),
            (0x444B1AE4D6E2EF4E, b"999999999999999700000"),
            (0x444B1AE4D6E2EF4F, b"999999999999999900000"),
            (0x444B1AE4D6E2EF50, b"1e+21"),
            (0x3EB0C6F7A0B5ED8C, b"9.999999999999997e-7"),
            (0x3EB0C6F7A0B5ED8D, b"0.000001"),
            (0x41B3DE4355555553, b"333333333.3333332"),
            (0x41B3DE4355555554, b"333333333.33333325"),
            (0x41B3DE4355555555, b"333333333.3333333"),
            (0x41B3DE4355555556, b"333333333.3333334"),
            (0x41B3DE4355555557, b"333333333.33333343"),
            (0xBECBF647612F3696, b"-0.0000033333333333333333"),
            (0x43143FF3C1CB0959, b"1424953923781206.2"),
        ],
    )
    def test_doubles_of_the_rfc(self, bits: int, text: bytes) -> None:
        (value,) = struct.unpack("<d", struct.pack("<Q", bits))
        assert encode_json(value) == text

    def test_the_largest_integers(self) -> None:
        assert encode_json([2**53 - 1, 1 - 2**53]) == b"[9007199254740991,-9007199254740991]"

    @pytest.mark.parametrize(
        "value",
        [float("nan"), float("inf"), float("-inf"), 2**53, -(2**53), 10**400, "\ud800", {"\udfff": 1}, ["a", "\udc80"]],
        ids=repr,
    )
    def test_what_has_no_canonical_form(self, value: canonical.Json) -> None:
        with pytest.raises(InputError, match="no canonical JSON form"):
            encode_json(value)

    def test_nesting_beyond_the_stack(self) -> None:
        value: canonical.Json = []
        for _ in range(100_000):
            value = [value]
        with pytest.raises(InputError, match="no canonical JSON form"):
            encode_json(value)


class TestDecoding:
    @pytest.mark.parametrize(
        ("data", "value"),
        [
            (b"{}", {}),
            (b' {"b": [1, -0, 0.5, 1e3], "a": null}\n', {"a": None, "b": [1, 0, 0.5, 1000.0]}),
            (b'"\\ud83d\\ude00"', "\U0001f600"),
            (b"9007199254740991", 2**53 - 1),
            (b"-9007199254740991", 1 - 2**53),
        ],
    )
    def test_valid(self, data: bytes, value: object) -> None:
        assert decode(data) == value

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b'{"a":1,"a":1}', "appears twice"),
            (b'{"x":{"a":1,"b":2,"\\u0061":3}}', "appears twice"),
            (b"NaN", "is not JSON"),
            (b"[Infinity]", "is not JSON"),
            (b"[-Infinity]", "is not JSON"),
            (b"1e400", "not finite"),
            (b"[-1e999]", "not finite"),
            (b"9007199254740992", "beyond 2^53"),
            (b"-9007199254740992", "beyond 2^53"),
            (b"1" * 5000, "beyond 2^53"),
            (b"1" * 100_000, "beyond 2^53"),
            (b'"\\ud800"', "lone surrogate"),
            (b'{"\\udfff":1}', "lone surrogate"),
            (b'["a",{"b":"\\udc00\\ud800"}]', "lone surrogate"),
            (b"\xff", "not valid JSON"),
            (b'"\xed\xa0\x80"', "not valid JSON"),
            (b"\xef\xbb\xbf{}", "not valid JSON"),
            (b"", "not valid JSON"),
            (b"{} {}", "not valid JSON"),
            (b"{'a':1}", "not valid JSON"),
            (b"[1,]", "not valid JSON"),
            (b"01", "not valid JSON"),
            (b"+1", "not valid JSON"),
            (b'"a\nb"', "not valid JSON"),
            (b'"\x00"', "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
            (b"[" * 100_000 + b"]" * 100_000, "not valid JSON"),
            (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not valid JSON"),
        ],
        ids=lambda value: repr(value[:24]),
    )
    def test_refused(self, data: bytes, why: str) -> None:
        with pytest.raises(InputError, match=r"^a file: ") as caught:
            decode(data)
        assert why in caught.value.message
        assert len(caught.value.message) < 400
        assert caught.value.object == "a file"

    def test_depth(self) -> None:
        deepest = limits.JSON_DEPTH
        decode(b"[" * deepest + b"1" + b"]" * deepest)
        with pytest.raises(InputError, match="nested deeper than 32"):
            decode(b"[" * (deepest + 1) + b"1" + b"]" * (deepest + 1))
        with pytest.raises(InputError, match="nested deeper than 32"):
            decode(b'{"a":' * (deepest + 1) + b"1" + b"}" * (deepest + 1))

    def test_size_is_checked_first(self) -> None:
        decode(b'"12345678"', max_bytes=10)
        with pytest.raises(InputError, match="11 bytes, more than the 10 allowed"):
            decode(b"\xff" * 11, max_bytes=10)

    def test_entries(self) -> None:
        data = b'{"a":[1,2,3],"b":{"c":[]}}'
        decode(data, max_entries=6)
        with pytest.raises(InputError, match="6 entries, more than the 5 allowed"):
            decode(data, max_entries=5)

    def test_entry_cap_takes_marks_inside_strings_for_text(self) -> None:
        decode(json.dumps({"a": ",[{" * 1000, '\\"[,': "\\" * 7 + '",' * 99}).encode(), max_entries=2)

    def test_entry_cap_never_counts_more_than_there_is(self) -> None:
        decode(b'{"a":[],"b":[],"c":{},"d":""}', max_entries=4)
        decode(b"[[],[],[],[]]", max_entries=4)

    @pytest.mark.parametrize(
        "data",
        [b"[" + b"[]," * 5000 + b"[]]", b'["a' + b'","' * 5000 + b'"]', b"[0" + b",0" * 5000 + b"]"],
        ids=["lists", "strings", "numbers"],
    )
    def test_entry_cap_comes_before_parsing(self, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("parsed before the cap was checked")

        monkeypatch.setattr(canonical.json, "loads", refuse)
        with pytest.raises(InputError, match="more than the 100 entries allowed"):
            decode(data, max_entries=100)


class TestRecordBytes:
    def test_prefix_and_digest(self) -> None:
        data = record_bytes("commit", {"b": 1, "a": "é"})
        assert data == b'rblstore/commit/1\n{"a":"\xc3\xa9","b":1}'
        assert record_kind(data) == "commit"
        assert record_body(data, "commit") == {"a": "é", "b": 1}
        assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\n",
            b"rblstore",
            b"rblstore/commit/1",
            b"rblstore/commit\n{}",
            b"rblstore/commit/1/2\n{}",
            b"RBLSTORE/commit/1\n{}",
            b" rblstore/commit/1\n{}",
            b"git/commit/1\n{}",
            b"x" * 200 + b"\n",
            b"\xff/\xfe/\xfd\n",
        ],
        ids=repr,
    )
    def test_not_a_record(self, data: bytes) -> None:
        with pytest.raises(InputError, match="not an rblstore record"):
            record_kind(data)

    @pytest.mark.parametrize("version", [b"2", b"0", b"", b"01", b"1 ", b"1\r", b"\xff"])
    def test_another_version(self, version: bytes) -> None:
        with pytest.raises(InputError, match="is not known") as caught:
            record_kind(b"rblstore/commit/" + version + b"\n{}")
        assert caught.value.hint is not None

    def test_another_kind(self) -> None:
        with pytest.raises(InputError, match="a tag record was expected, found commit"):
            record_body(b"rblstore/commit/1\n{}", "tag")

    @pytest.mark.parametrize(
        "body",
        [
            b' {"a":1}',
            b'{"a":1}\n',
            b'{"a": 1}',
            b'{"b":1,"a":2}',
            b'{"a":1.0}',
            b'{"a":-0}',
            b'{"a":1e2}',
            b'{"a":"\\u0041"}',
            b'{"a":"\\/"}',
            b'{"a":9007199254740993}',
            b'{"a":1e+16}',
            b'{"a":1e-400}',
        ],
        ids=repr,
    )
    def test_other_spellings_are_refused(self, body: bytes) -> None:
        with pytest.raises(InputError, match="not in canonical form"):
            record_body(b"rblstore/tag/1\n" + body, "tag")

    @pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"a"'])
    def test_not_an_object(self, body: bytes) -> None:
        with pytest.raises(InputError, match="not a JSON object"):
            record_body(b"rblstore/tag/1\n" + body, "tag")

    @pytest.mark.parametrize("value", [2.0**53, -(2.0**60), 1e17, 999999999999999900000.0, 1e21, 1e300])
    def test_a_large_double_comes_back(self, value: float) -> None:
        found = record_body(record_bytes("tag", {"a": value}), "tag")["a"]
        assert type(found) is float
        assert found == value

    def test_a_number_beyond_all_spellings_of_doubles(self) -> None:
        with pytest.raises(InputError, match="beyond 2"):
            record_body(b'rblstore/tag/1\n{"a":' + b"1" * 23 + b"}", "tag")
