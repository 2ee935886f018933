"""Names that become paths: what is allowed, and a long list of what is not."""

from __future__ import annotations

import tracemalloc
import unicodedata

import pytest
from hostile_names import COLLIDING, HOSTILE

from rblstore.errors import InputError, UsageError
from rblstore.objects.paths import check_name, check_path, check_paths, check_ref_name

PLAIN = [
    "a", "config.json", "model-00001-of-00005.safetensors", "1_Pooling/config.json", "a/b/c", ".gitattributes",
    ".hidden", "..a", "...a",
    "a..b", "a b", "a  b.txt", "é", "e\u0301", "日本語.txt", "\U0001f600", "a'b", "a&b;c", "$(x)", "`x`", "~", "~x",
    "-rf", "--", "%2e%2e",
    "con1", "conx", "console", "xcon", "com", "com10", "lpt", "nul1", "auxiliary.txt", "prn-x", "rbl", "git", "rbl~",
    "rbl~x", "xrbl~1",
    ".rblx", ".gitx", "a" * 255, "/".join(["a" * 255] * 4), "é" * 127, "a,b", "a=b", "a+b", "[a]", "{a}", "@a", "#a",
    "!a", "a^b",
]  # fmt: skip


def test_the_list_is_long_and_without_repeats() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) >= 150


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: ascii(path)[:40])
def test_hostile(path: str) -> None:
    with pytest.raises(InputError) as caught:
        check_path(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    with pytest.raises(InputError):
        check_paths(["fine", path])


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: ascii(path)[:40])
def test_hostile_as_a_name(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(path, "behavior")
    assert caught.value.message.isprintable()
    with pytest.raises(UsageError):
        check_ref_name(path, "branch")


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: ascii(path)[:40])
def test_plain(path: str) -> None:
    assert check_path(path) == path
    check_paths([path])


@pytest.mark.parametrize(("first", "second"), COLLIDING, ids=ascii)
def test_collisions(first: str, second: str) -> None:
    check_path(first)
    check_path(second)
    for pair in ([first, second], [second, first]):
        with pytest.raises(InputError, match=r"collides|lies under|in another way"):
            check_paths(["another/file", *pair])


def test_neighbours_do_not_collide() -> None:
    check_paths(["a", "b/a", "b/c", "b/d/a", "ab", "a.b", "a-b/c", "B2/a", "é", "e", "ı", "i"])


def test_spelling_is_kept() -> None:
    decomposed = unicodedata.normalize("NFD", "é/ü")
    assert check_path(decomposed) == decomposed


@pytest.mark.parametrize("name", ["a", "A1", "polite", "v1.2", "a_b", "a+b-c", "0", "a" * 255, "HEAD", "0" * 64])
def test_names(name: str) -> None:
    assert check_name(name, "behavior") == name


@pytest.mark.parametrize(
    "name", ["main", "feature/x", "a/b/c", "v1.0", "HEADS", "head2", "a.lock.b", "0" * 63, "abcdef"]
)
def test_ref_names(name: str) -> None:
    assert check_ref_name(name, "branch") == name


@pytest.mark.parametrize(
    "name",
    [
        "HEAD", "head", "PROBE", "probe", "a..b", "a.lock", "a/b.lock", "0" * 64, "a@{1}", "a~1", "a^", "a:b", "-a",
        "a/-b", "a/.b",
        "a//b", "/a", "a/", "@", "é", "a b", "a\n", "main\n", "a" * 256, "a/con", "aux/x", "a/nul.txt", "ref: x",
        "a/..", "a.",
    ],
    ids=ascii,
)  # fmt: skip
def test_no_ref_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a tag") as caught:
        check_ref_name(name, "tag")
    assert caught.value.exit_code == 2


def test_deep_paths_take_memory_by_their_length_alone() -> None:
    """Remembering every folder by its whole path would take the square of it."""
    paths = ["/".join([f"{number:03d}", *"a" * 500]) for number in range(200)]
    tracemalloc.start()
    try:
        check_paths(paths)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
