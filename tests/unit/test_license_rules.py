"""Files of rules, read strictly: what is not in the schema is refused, by name."""

from __future__ import annotations

import pytest
from scenario_parts import found, subject

from rblstore.errors import InputError
from rblstore.provenance.engine import find
from rblstore.provenance.rule import FILE_BYTES, BadRulesError, matches
from rblstore.provenance.rulebook import FILES, built_in, rulebook

RULE = """
schema = 1
name = "acme"
version = "7"

[groups]
house = ["LicenseRef-acme-*", "@permissive"]

[[rule]]
id = "acme.house"
level = "conflict"
licenses = ["@house"]
message = "{part} is under {license}"
obligation = "Ask Grace."
citation = { document = "Handbook", section = "4" }
"""


def one_part(*licenses: str) -> dict[str, object]:
    return {"parts": [{"role": "identity", "name": "base", "licenses": list(licenses)}], "use": ["use"]}


def test_rules_of_ones_own_add_and_use_groups_that_are_there() -> None:
    book = rulebook([("acme.toml", RULE.encode())])
    assert book.sets == ((built_in().name, built_in().version), ("acme", "7"))
    assert book.rules["acme.house"].licenses[0] == "LicenseRef-acme-*"
    assert found(one_part("LicenseRef-acme-inner"), book.rules) == ["conflict acme.house: identity base"]
    (finding,) = find(subject(one_part("mit")), book.rules)
    assert (finding.message, finding.citation.text) == ("identity base is under MIT", "Handbook, 4")


# Of these several texts are meant, or the text was not at hand.
WITHOUT_SECTION = {"permissive.notices", "cc.which", "research.only", "rail.which", "gap.unsigned"}


def test_citations_say_where_to_read() -> None:
    for rule in built_in().rules.values():
        assert rule.citation.url, rule.id
        assert bool(rule.citation.section) is (rule.id not in WITHOUT_SECTION), rule.id


def test_rules_of_ones_own_replace_by_id() -> None:
    own = RULE.replace("acme.house", "gap.without-source").replace('licenses = ["@house"]', 'check = "without-source"')
    parts = {"parts": [{"role": "identity", "name": "base", "licenses": ["mit"], "source": ""}], "use": ["use"]}
    assert found(parts, built_in().rules) == ["gap gap.without-source: identity base"]
    assert found(parts, rulebook([("acme.toml", own.encode())]).rules) == ["conflict gap.without-source: identity base"]
    assert built_in().rules["gap.without-source"].level == "gap"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("schema = 1", "schema = 2", "'schema' is not 1"),
        ("schema = 1", "", "'schema' is not 1"),
        ('name = "acme"', "", "no 'name'"),
        ('version = "7"', "version = 7", "'version' is not a text"),
        ('level = "conflict"', 'level = "fatal"', "'fatal', none of"),
        ('level = "conflict"', "", "no 'level'"),
        ('citation = { document = "Handbook", section = "4" }', "", "no 'citation'"),
        ('document = "Handbook", ', "", "no 'document'"),
        ('section = "4"', 'page = "4"', "nobody knows its member 'page'"),
        ('obligation = "Ask Grace."', 'advice = "Ask Grace."', "nobody knows its member 'advice'"),
        ('obligation = "Ask Grace."', 'triggers = ["sell"]', "'sell', none of"),
        ('obligation = "Ask Grace."', "triggers = []", "is empty"),
        ('obligation = "Ask Grace."', 'on = ["cloud"]', "'cloud', none of"),
        ('obligation = "Ask Grace."', 'check = "unverified"', "either 'licenses' or a 'check'"),
        ('licenses = ["@house"]', "", "either 'licenses' or a 'check'"),
        ('licenses = ["@house"]', 'check = "vibes"', "no check 'vibes'"),
        ('licenses = ["@house"]', 'check = "unverified"\nconflicts = ["MIT"]', "a check has no 'conflicts'"),
        ('licenses = ["@house"]', 'licenses = ["@none"]', "no group of licences '@none'"),
        ('licenses = ["@house"]', 'licenses = ["MIT OR GPL-2.0"]', "neither a licence's key nor"),
        ('licenses = ["@house"]', 'licenses = "MIT"', "not a list of at most"),
        ('obligation = "Ask Grace."', 'conflicts = ["MIT"]', "'propagates'"),
        ('obligation = "Ask Grace."', 'unless = ["MIT"]', "there are none"),
        ("Ask Grace.", "Ask {whom}.", "{whom} stands for nothing"),
        ("Ask Grace.", "Ask \\u001b[31mGrace.", "cannot be printed"),
        ("Ask Grace.", "x" * 2001, "not a text of 1 to 2000"),
        ('id = "acme.house"', 'id = "Acme House"', "its id 'Acme House'"),
        ("[[rule]]", "[rule]", "[[rule]]"),
        ("[[rule]]", "[[rule]", "not a TOML document"),
        ("[groups]", "[[groups]]", "it is not a table"),
        ("schema = 1", "schema = 1\nschema = 1", "not a TOML document"),
        ("schema = 1", f"x{'.x' * 20_000} = 1", "a line of more than"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_what_breaks_the_schema_is_named(old: str, new: str, why: str) -> None:
    assert RULE.count(old) == 1
    with pytest.raises(BadRulesError) as raised:
        rulebook([("acme.toml", RULE.replace(old, new).encode())])
    assert why in raised.value.message
    assert raised.value.message.startswith("acme.toml: ")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 5000, b"x = " + b"9" * 10_000, b"a" * (FILE_BYTES + 1)])
def test_no_bytes_get_past_the_schema(data: bytes) -> None:
    with pytest.raises((BadRulesError, InputError)):
        rulebook([("acme.toml", data)])


def test_a_rule_is_not_there_twice() -> None:
    twice = RULE + RULE[RULE.index("[[rule]]") :]
    with pytest.raises(BadRulesError, match=r"'acme\.house' is there twice"):
        rulebook([("acme.toml", twice.encode())])


def test_the_rules_that_come_with_it_are_one_set() -> None:
    from importlib.resources import files

    folder = files("rblstore.provenance").joinpath("rules")
    assert {file.name for file in folder.iterdir()} == {f"{name}.toml" for name in FILES}
    texts = [folder.joinpath(f"{name}.toml").read_text(encoding="utf-8") for name in FILES]
    assert (
        len({tuple(line for line in text.splitlines() if line.startswith(("name", "version"))) for text in texts}) == 1
    )
    assert sum(text.count("[[rule]]") for text in texts) == len(built_in().rules)  # no id in two files


def test_patterns_match_from_the_beginning() -> None:
    assert matches(("CC-BY-NC-*",), "CC-BY-NC-SA-4.0")
    assert not matches(("CC-BY-NC-*", "MIT"), "CC-BY-4.0")
    assert not matches(("MIT",), "MIT-0")


def test_a_name_is_filled_in_as_a_shell_takes_it() -> None:
    own = RULE.replace("Ask Grace.", "rbl state {name} --concluded EXPR")
    book = rulebook([("acme.toml", own.encode())])
    (base,) = find(subject(one_part("mit")), book.rules)
    assert base.obligation == "rbl state identity --concluded EXPR"
    odd = {"parts": [{"role": "dataset", "name": "a b; rm", "licenses": ["mit"]}], "use": ["use"]}
    book = rulebook(
        [("acme.toml", own.replace('licenses = ["@house"]', 'licenses = ["@house"]\non = ["dataset"]').encode())]
    )
    found_in_data = [one for one in find(subject(odd), book.rules) if one.rule == "acme.house"]
    assert [one.obligation for one in found_in_data] == ["rbl state 'a b; rm' --concluded EXPR"]
