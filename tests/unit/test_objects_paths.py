"""Names that become paths: what is allowed, and a long list of what is not."""

from __future__ import annotations

import unicodedata

import pytest

from rblstore.errors import InputError, UsageError
from rblstore.objects.paths import check_name, check_path, check_paths, check_ref_name

DEVICES = ["con", "prn", "aux", "nul", "conin$", "conout$", "com¹", "com²", "com³", "lpt¹", "lpt²", "lpt³"] + [
    f"{port}{number}" for port in ("com", "lpt") for number in range(10)
]

HOSTILE = [
    # leaving the directory
    "", ".", "..", "/", "//", "./", "../", "../x", "a/..", "a/../b", "a/../../b", "a/./b", "./a", "/a", "//a",
    "a//b", "a/",
    "/etc/passwd", "//server/share", "../../../../etc/passwd", "a/b/../../../c", "....//....//x/..", "..;/x/../y",
    # drives, UNC, streams, backslashes
    "C:", "C:x", "c:/windows", "C:\\x", "\\x", "\\\\server\\share", "\\\\?\\C:\\x", "\\\\.\\nul", "..\\x", "a\\b",
    "a\\..\\b",
    "file:stream", "file::$DATA", "a:b/c", "x:", "file:///etc/passwd", "http://x/y",
    # characters that some system reads as something else
    "a<b", "a>b", 'a"b', "a|b", "a?b", "a*b", "*", "?", "\x00", "a\x00", "a\x00b", "\x01", "a\nb", "a\rb", "a\tb",
    "a\x1bb", "a\x7f",
    "a\x80b", "a\x85b", "a\x9fb", "\n", "a\n", "x/\x00/y", "a\x1b[2Jb", "a\x0bb", "a\x0cb",
    # spaces and dots at the ends
    " ", " a", "a ", "a.", "a..", "...", ". .", "a/ ", "a/ b", "a/b ", "a /b", "a./b", ".. /x", "../ x", "x/.. ",
    "x/...", " ..",
    # invisible and bidirectional characters, surrogates, separators
    "a\u200bb", "\u200b", "a\u200cb", "a\u200db", "a\u200eb", "a\u200fb", "a\u202ab", "a\u202eb", "gpj\u202e.exe",
    "a\u2066b", "a\u2069b",
    "a\u2060b", "\ufeffa", "a\ufeff", "a\u00adb", "a\u061cb", "a\u180eb", "a\u2028b", "a\u2029b", "a\U000e0001b",
    "a\U000e0041b",
    "\ud800", "a\udc80", "\udfff/x", "a\ud83d", ".\u200b.", ".g\u200cit", ".r\u200dbl/x", "\ufff9a", "a\U0001d173b",
    # the store's own folder, however it is spelled
    ".rbl", ".RBL", ".Rbl/x", "a/.rbl", "a/.rbl/b", ".git", ".GIT", ".Git/config", "a/.git/hooks/x", "rbl~1",
    "RBL~1", "rbl~2", "git~1",
    "GIT~1/config", "a/git~9/b", "rbl~10",
    # too long
    "a" * 256, "a/" + "b" * 256, "é" * 128, "\U0001f600" * 64, "a/" * 512 + "b", "/".join(["a" * 200] * 6), "é/" * 400,
    # Windows devices, with what Windows ignores after them
    *DEVICES, *(name.upper() for name in DEVICES), "Con.txt", "nul.tar.gz", "a/aux", "AUX/b", "com1.", "lpt9.x",
    "com¹.log", "nul .txt",
    "aux  .json", "CON .", "a/PRN .safetensors/b", "conin$.x", "nul.", "NUL/x", "con.con",
]  # fmt: skip

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

COLLIDING = [
    ("a", "a"),
    ("a", "A"),
    ("Config.json", "config.JSON"),
    ("é", "e\u0301"),
    ("É", "e\u0301"),
    ("Å", "\u212b"),
    ("K", "\u212a"),
    ("straße", "STRASSE"),
    ("straße", "strasse"),
    ("\u00b5", "\u03bc"),
    ("ς", "σ"),
    ("Σ", "ς"),
    ("\ufb01x", "fix"),
    ("ſ", "s"),
    ("\u1e9e", "ss"),
    ("\u0345α", "\u0345Α"),
    ("\u1fb3", "\u03b1\u03b9"),
    ("\uac00", "\u1100\u1161"),
    ("İ", "i\u0307"),
    ("dir/a", "DIR/a"),
    ("dir/a", "Dir/b"),
    ("é/a", "e\u0301/b"),
    ("a", "a/b"),
    ("a/b", "a"),
    ("A", "a/b"),
    ("a/B", "a/b/c"),
    ("a/b/c", "A"),
    ("x/y/z", "x/Y/w"),
]


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
