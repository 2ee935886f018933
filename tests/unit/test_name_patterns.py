from __future__ import annotations

import difflib

import pytest

from rblstore.checkpoints.name_patterns import NothingMatchedError, choose_names
from rblstore.errors import UsageError

PATHS = [
    "README.md",
    "behaviors/brief/adapter_config.json",
    "behaviors/polite/adapter_config.json",
    "behaviors/polite/deep/er/notes.json",
    "config.json",
    "tokenizer.json",
    "x[1].json",
]


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("config.json", [4]),
        ("*.json", [4, 5, 6]),
        ("*", [0, 4, 5, 6]),
        ("**", [0, 1, 2, 3, 4, 5, 6]),
        ("**/*.json", [1, 2, 3, 4, 5, 6]),
        ("**/adapter_config.json", [1, 2]),
        ("behaviors/polite/*", [2]),
        ("behaviors/polite/**", [2, 3]),
        ("behaviors/**/notes.json", [3]),
        ("behaviors/**/**/notes.json", [3]),
        ("behaviors/*/*.json", [1, 2]),
        ("behaviors/[!p]*/*", [1]),
        ("?onfig.json", [4]),
        ("[a-d]onfig.json", [4]),
        ("x[1].json", [6]),
        ("x[[]1].json", [6]),
        ("**.json", [4, 5, 6]),
        ("R*\N{DIGIT ONE}", None),
        ("readme.md", None),
        ("Config.json", None),
        ("/config.json", None),
        ("config.json/", None),
        ("behaviors", None),
        ("behaviors*", None),
        ("onfig", None),
        ("", None),
        ("[", None),
    ],
)
def test_what_a_pattern_chooses(pattern: str, chosen: list[int] | None) -> None:
    if chosen is None:
        with pytest.raises(NothingMatchedError):
            choose_names([pattern], PATHS, "file")
    else:
        assert sorted(choose_names([pattern], PATHS, "file")) == [PATHS[at] for at in chosen]


def test_several_choose_together_and_each_must_choose_something() -> None:
    assert choose_names(["config.json", "README*"], PATHS, "file") == {"config.json", "README.md"}
    assert choose_names("config.json", PATHS, "file") == {"config.json"}
    with pytest.raises(NothingMatchedError, match=r"no file matches 'nothing\*'"):
        choose_names(["config.json", "nothing*"], PATHS, "file")


def test_dots_are_not_slashes() -> None:
    names = ["model.layers.0.mlp.weight", "model.layers.10.mlp.weight", "model.norm.weight"]
    assert choose_names(["model.layers.0.*"], names, "tensor") == {names[0]}
    assert choose_names(["model.*"], names, "tensor") == set(names)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("confg.json", "Did you mean config.json"),
        ("behaviors/polite", "for everything in it: behaviors/polite/**"),
        ("behaviors/", "for everything in it: behaviors/**"),
        ("zzzzzzzzzz", "and 4 more"),
    ],
)
def test_the_hint_says_what_there_is(pattern: str, hint: str) -> None:
    with pytest.raises(NothingMatchedError) as caught:
        choose_names([pattern], PATHS, "file")
    assert hint in (caught.value.hint or "")
    assert (caught.value.code, caught.value.exit_code) == ("nothing_matched", 1)


def test_none_of_none() -> None:
    with pytest.raises(NothingMatchedError) as caught:
        choose_names(["a"], [], "tensor")
    assert caught.value.hint == "There is no tensor at all."


def test_malformed_requests() -> None:
    with pytest.raises(UsageError, match="no pattern"):
        choose_names([], PATHS, "file")
    with pytest.raises(UsageError, match="longer than any name"):
        choose_names(["*" * 2000], PATHS, "file")


@pytest.mark.parametrize("pattern", ["*a" * 200 + "b", "**/" * 300 + "b", "[b-a]", "[]", "[!", "\\", "(?P<x>", "a\nb"])
def test_no_pattern_takes_long_or_breaks(pattern: str) -> None:
    with pytest.raises((NothingMatchedError, UsageError)):
        choose_names([pattern], ["a" * 1000, "/".join("a" * 500)], "file")


def test_a_hint_costs_little_whatever_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing two names takes the product of their lengths, and more where they are made of two letters."""
    compared: list[int] = []

    def look(name: str, names: list[str], n: int) -> list[str]:
        compared.append(sum(len(name) * len(other) for other in names))
        return []

    monkeypatch.setattr(difflib, "get_close_matches", look)
    with pytest.raises(NothingMatchedError):
        choose_names("ab" * 200, [f"{'ba' * 200}{number}" for number in range(5000)], "file")
    assert 0 < compared[0] <= 1_000_000


def test_stars_in_a_row_are_one() -> None:
    assert choose_names("**/" * 300 + "notes.json", PATHS, "file") == {"behaviors/polite/deep/er/notes.json"}
    assert choose_names("behaviors/" + "**/" * 300 + "**", PATHS, "file") == set(PATHS[1:4])
