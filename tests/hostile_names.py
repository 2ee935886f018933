"""Names by which somebody may try to leave a directory, or to be read as something else on some system."""

from __future__ import annotations

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


def hostile_names() -> list[str]:
    """Every hostile path, and what becomes of them in a folder, behind a good name, and before one: more than 500."""
    found = dict.fromkeys(HOSTILE)
    for name in HOSTILE:
        found[f"behaviors/{name}"] = None
        found[f"sub/{name}/config.json"] = None
    # In front of a name or behind it, what is at the end of a component may be in its middle, and then it may pass.
    return list(found)
