"""Prompt files of every kind, hostile ones among them, and probes made of them."""

from __future__ import annotations

import json

import pytest

from rblstore.divergence import probe_file
from rblstore.divergence.probe_file import BadProbeError, RawPrompt, parse_prompts
from rblstore.divergence.probes import ProbeMismatchError, baseline_bytes, check_probe_fits, make_probe
from rblstore.objects import limits
from rblstore.objects.evidence_records import Probe
from rblstore.objects.ids import ContentId

TOKENIZER, ANOTHER = ContentId("a" * 64), ContentId("b" * 64)


def encode(text: str) -> list[int]:
    return [1, *text.encode()]


def test_json_holds_objects_and_strings() -> None:
    data = b'[{"id": "a", "text": "one"}, "two", {"tokens": [3, 0, 2147483647]}, {"id": "b", "tokens": [1]}]'
    assert parse_prompts(data, "prompts.JSON") == (
        RawPrompt("a", text="one"),
        RawPrompt("p01", text="two"),
        RawPrompt("p02", tokens=(3, 0, 2147483647)),
        RawPrompt("b", tokens=(1,)),
    )


@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson"])
def test_json_lines_skip_blank_ones(name: str) -> None:
    data = b'\xef\xbb\xbf{"text": "a\\nb"}\r\n\n"c"\n'
    assert parse_prompts(data, name) == (RawPrompt("p00", text="a\nb"), RawPrompt("p01", text="c"))


def test_text_is_one_prompt_a_line_and_nothing_else_ends_a_line() -> None:
    found = parse_prompts("first \r\n\n   \nform\x0cfeed\u2028[1]\n".encode(), "prompts.txt")
    assert found == (RawPrompt("p00", text="first "), RawPrompt("p01", text="form\x0cfeed\u2028[1]"))


def test_default_ids_go_on_past_ninety_nine() -> None:
    found = parse_prompts("\n".join(["x"] * 101).encode(), "prompts")
    assert (found[7].id, found[100].id) == ("p07", "p100")


@pytest.mark.parametrize(
    ("element", "named", "why"),
    [
        ({"id": "x", "text": ""}, "x", "empty"),
        ({"id": "x", "tokens": []}, "x", "empty"),
        ("", "p01", "empty"),
        (5, "p01", "a number"),
        (None, "p01", "null"),
        ([1, 2], "p01", "an array"),
        ({"id": "x"}, "x", "either 'text' or 'tokens'"),
        ({"id": "x", "text": "a", "tokens": [1]}, "x", "either 'text' or 'tokens'"),
        ({"id": "x", "text": 5}, "x", "not text"),
        ({"id": "x", "text": "a\0b"}, "x", "not text"),
        ({"id": "x", "text": "a" * 65537}, "x", "65536"),
        ({"id": "x", "tokens": "12"}, "x", "text for its tokens"),
        ({"id": "x", "tokens": [1, -1]}, "x", "integer"),
        ({"id": "x", "tokens": [1, True]}, "x", "integer"),
        ({"id": "x", "tokens": [1.0]}, "x", "integer"),
        ({"id": "x", "tokens": [1 << 31]}, "x", "integer"),
        ({"id": "x", "text": "a", "label": 1}, "x", "unknown member 'label'"),
        ({"id": 7, "text": "a"}, "p01", "id"),
        ({"id": "", "text": "a"}, "p01", "id"),
        ({"id": "a\x1b[31m", "text": "a"}, "p01", "id"),
        ({"id": "é" * 128, "text": "a"}, "p01", "255"),
        ({"id": "first", "text": "a"}, "first", "two prompts"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_a_bad_prompt_is_refused_by_name(element: object, named: str, why: str, name: str) -> None:
    elements = [{"id": "first", "text": "good"}, element]
    text = json.dumps(elements) if name == "p.json" else "\n".join(json.dumps(entry) for entry in elements)
    with pytest.raises(BadProbeError) as caught:
        parse_prompts(text.encode(), name)
    assert caught.value.object == named
    assert why in caught.value.message
    assert (caught.value.code, caught.value.exit_code) == ("bad_probe", 1)


@pytest.mark.parametrize(
    ("data", "name", "why"),
    [
        (b"", "p.txt", "no prompts"),
        (b" \n\n", "p.txt", "no prompts"),
        (b"[]", "p.json", "no prompts"),
        (b"", "p.json", "not valid JSON"),
        (b'{"text": "a"}', "p.json", "not a JSON array"),
        (b'"a"\n"b"', "p.json", "not valid JSON"),
        (b'"a"\n{', "p.jsonl", "line 2"),
        (b'{"text": "a", "text": "b"}', "p.jsonl", "appears twice"),
        (b'[{"tokens": [NaN]}]', "p.json", "NaN"),
        (b"[" * 100_000, "p.json", "p.json"),
        (b"\xff\xfe", "p.txt", "UTF-8"),
        (b"\xff\xfe", "p.json", "p.json"),
        (b'["\\ud800"]', "p.json", "surrogate"),
        (b'[{"tokens": [99999999999999999999999999]}]', "p.json", "2^53"),
    ],
)
def test_a_bad_file_is_refused(data: bytes, name: str, why: str) -> None:
    with pytest.raises(BadProbeError) as caught:
        parse_prompts(data, name)
    assert why in caught.value.message


def test_caps_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_file, "FILE_BYTES", 30)
    with pytest.raises(BadProbeError, match="31 bytes, more than the 30"):
        parse_prompts(b"[" + b" " * 30, "p.json")
    monkeypatch.setattr(probe_file, "PROMPTS", 2)
    with pytest.raises(BadProbeError, match="3 prompts, more than the 2"):
        parse_prompts(b"a\nb\nc", "p.txt")
    monkeypatch.setattr(probe_file, "PROMPT_TOKENS", 3)
    with pytest.raises(BadProbeError, match="4 tokens, more than the 3"):
        parse_prompts(b'{"tokens":[1,2,3,4]}', "p.jsonl")


def test_a_probe_runs_each_prompt_alone_and_names_its_tokenizer() -> None:
    probe = make_probe([RawPrompt("a", text="hi"), RawPrompt("b", tokens=(5, 6))], encode, TOKENIZER)
    assert [prompt.tokens for prompt in probe.prompts] == [(1, 104, 105), (5, 6)]
    assert [prompt.text for prompt in probe.prompts] == ["hi", None]
    assert probe.batches == ((0,), (1,))
    assert probe.positions == "all"
    assert probe.tokenizer == TOKENIZER
    assert Probe.parse(probe.encode()) == probe
    assert baseline_bytes(probe, 1000, 2) == 5 * 1000 * 2


def test_token_ids_alone_name_no_tokenizer() -> None:
    probe = make_probe([RawPrompt("b", tokens=(5, 6))], None, TOKENIZER, "last")
    assert probe.tokenizer is None
    assert baseline_bytes(probe, 1000, 4) == 4000


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ([RawPrompt("a", text="hi")], "a"),
        ([RawPrompt("a")], "a"),
        ([RawPrompt("a", tokens=())], "a"),
        ([RawPrompt("a", tokens=(-1,))], "a"),
        ([], None),
        ([RawPrompt("a", tokens=(1,)), RawPrompt("a", tokens=(2,))], None),
        ([RawPrompt("a", tokens=(1,) * 400_001)], None),
    ],
)
def test_what_makes_no_probe_is_refused(prompts: list[RawPrompt], named: str | None) -> None:
    with pytest.raises(BadProbeError) as caught:
        make_probe(prompts, None, None)
    if named is not None:
        assert caught.value.object == named
        assert repr(named) in caught.value.message


def test_a_tokenizer_that_gives_nothing_is_refused_by_prompt() -> None:
    with pytest.raises(BadProbeError, match="'a' has no tokens"):
        make_probe([RawPrompt("a", text="hi")], lambda _: [], TOKENIZER)


def test_what_could_not_be_read_back_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORD_ENTRIES", 50)
    assert len(make_probe([RawPrompt("a", tokens=(7,) * 20)], None, None).prompts[0].tokens) == 20
    with pytest.raises(BadProbeError, match="more than the 50 allowed"):
        make_probe([RawPrompt("a", tokens=(7,) * 60)], None, None)


def test_a_probe_fits_or_says_why() -> None:
    probe = make_probe([RawPrompt("a", text="hi"), RawPrompt("b", tokens=(5, 300))], encode, TOKENIZER)
    check_probe_fits(probe, tokenizer=TOKENIZER, vocabulary=301, context=3, probe_name="ten")
    check_probe_fits(probe, tokenizer=None, vocabulary=None, context=None, probe_name="ten")
    with pytest.raises(ProbeMismatchError, match="'ten' was made with tokenizer aaaaaaaaaaaa") as caught:
        check_probe_fits(probe, tokenizer=ANOTHER, vocabulary=None, context=None, probe_name="ten")
    assert (caught.value.code, caught.value.exit_code) == ("probe_mismatch", 4)
    with pytest.raises(ProbeMismatchError, match="'b': token 300 lies beyond the model's vocabulary of 300"):
        check_probe_fits(probe, tokenizer=TOKENIZER, vocabulary=300, context=None, probe_name="ten")
    with pytest.raises(ProbeMismatchError, match="'a': 3 tokens, and the model reads at most 2"):
        check_probe_fits(probe, tokenizer=TOKENIZER, vocabulary=None, context=2, probe_name="ten")
    by_ids = make_probe([RawPrompt("b", tokens=(5,))], None, TOKENIZER)
    check_probe_fits(by_ids, tokenizer=ANOTHER, vocabulary=6, context=1, probe_name="ids")
