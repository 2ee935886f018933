"""Recognising a licence by its text: all of it, by digest, or only its title. What is neither stays unknown.

A text is compared word by word: case, punctuation, white space, list numbers, copyright lines and what names the holder
count for nothing, since copies differ in them and mean the same. The digests below were computed by :func:`digest` from
texts as they are distributed (Debian's common licences, and the licence files of widely used Python packages).
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal, NamedTuple

_TEXT_BYTES: Final = 1 << 20
_TITLE_BYTES: Final = 4096
_WORD: Final = re.compile(r"[a-z0-9]+")
# Terms that somebody wrote into such a line stay, and so do lines of a licence that happen to begin with the word.
_COPYRIGHT: Final = re.compile(r"\W*(copyright(?! +(holder|owner|notice|and|law|licen))|\(c\)|©|all rights reserved)")
_TERMS: Final = re.compile(r"commercial|licen[sc]|permi|use|restrict|only|research|granted|forbid|prohibit")
_NUMBER: Final = re.compile(r"^\W*(\d{1,2}|[a-z])[.)]\s")
_NAMES: Final = re.compile(r"neither the names? of .{1,100}? nor the names of (its|any|the|other) contributors")
_NAMED: Final = "neither the name of the copyright holder nor the names of its contributors"
# A line that holds nothing but these is a heading, which copies of a licence have or have not.
_HEADING: Final = frozenset(
    _WORD.findall("the new modified revised simplified or mit bsd isc expat zlib 2 3 clause license licence")
)


class Recognised(NamedTuple):
    """What a text is.

    Attributes:
        expression: Normalised.
        by: ``text`` where all of it is that licence's, ``title`` where only its beginning is.
    """

    expression: str
    by: Literal["text", "title"]


DIGESTS: Final[dict[str, str]] = {
    "0cf21bdfd1964a97a8615e128534845826afbc887edc95aa5c925cbf64386b5c": "MIT",
    "0767a15f6a1414801c4a78b00ef7542aed022f93a0169cf370643bf41adbfa4c": "Apache-2.0",
    "9d569844b3db804f24ab9ca410d3b6e38664a7bf4012efcb3b468d6bffc5545b": "Apache-2.0",
    "ff6668a1ae978ea670d7bfaf0f2f23d2c8d1f7517e508a73880a6bad0fdd9e97": "Apache-2.0",
    "53075742228962c7ea381b8242c64602fa32e7b8f52facb6d13ee4f9c596ddfa": "BSD-3-Clause",
    "986c3c3199a93b916c8f2e0aeed57819bcbdcb2cd9d99902dcc9d74b53f93a74": "BSD-2-Clause",
    "7404ddc55d1f7b60bd9731dab92e9b4ac796950ad394544cda8f973ecccaed7a": "MPL-2.0",
    "5fcf89bde8c0c2deb999f4cc626e1aebf90e80fdc5cd334dae008152ef4a1ded": "BSL-1.0",
    "9ed97dd7e09fd425f35f0d2da0965bedf473c81c52c3a467faa8013d89e2e039": "Zlib",
    "51c4bf27767d074bdefc84db7420b4c55e27827dac6d8de3ef0d37b2042fb6fa": "CC0-1.0",
    "2e8e378a3d24393c0f3fd1439ffbe84e750886c09715e622426a6a0e54fa1bee": "GPL-2.0-only",
    "673de7dedcc2ef4d7e215127016a62e9e56e35493de01c803966dd152aa0b8d5": "GPL-3.0-only",
    "d4f6bde3009e3fb7668efbe207b75664dee9a0f6318f8fd91426ba60021ba04b": "LGPL-2.1-only",
    "cb8c0f424bdd5c42a0b18285893829d988e9fb9a00d0cd604a59ebe8da7eeb45": "LGPL-3.0-only",
}
"""Digest of the words of a whole text -> expression. A GPL's text leaves open whether later versions serve: "only"."""

TITLES: Final[dict[str, str]] = {
    "apache license version 2 0 january 2004": "Apache-2.0",
    "attribution 4 0 international": "CC-BY-4.0",
    "attribution sharealike 4 0 international": "CC-BY-SA-4.0",
    "attribution noncommercial 4 0 international": "CC-BY-NC-4.0",
    "attribution noderivatives 4 0 international": "CC-BY-ND-4.0",
    "attribution noncommercial noderivatives 4 0 international": "CC-BY-NC-ND-4.0",
    "attribution noncommercial sharealike 4 0 international": "CC-BY-NC-SA-4.0",
    "creative commons attribution 4 0 international": "CC-BY-4.0",
    "creative commons attribution sharealike 4 0 international": "CC-BY-SA-4.0",
    "creative commons attribution noncommercial 4 0 international": "CC-BY-NC-4.0",
    "creative commons attribution noderivatives 4 0 international": "CC-BY-ND-4.0",
    "creative commons attribution noncommercial noderivatives 4 0 international": "CC-BY-NC-ND-4.0",
    "creative commons attribution noncommercial sharealike 4 0 international": "CC-BY-NC-SA-4.0",
    "creative commons legal code cc0 1 0 universal": "CC0-1.0",
    "cc0 1 0 universal": "CC0-1.0",
    "gnu affero general public license version 3 19 november 2007": "AGPL-3.0-only",
    "gnu general public license version 2 june 1991": "GPL-2.0-only",
    "gnu general public license version 3 29 june 2007": "GPL-3.0-only",
    "gnu lesser general public license version 2 1 february 1999": "LGPL-2.1-only",
    "gnu lesser general public license version 3 29 june 2007": "LGPL-3.0-only",
    "mozilla public license version 2 0": "MPL-2.0",
    "gemma terms of use": "LicenseRef-scancode-gemma-tou-2024-04-01",
    "llama 2 community license agreement": "LicenseRef-scancode-llama-2-license-2023",
    "meta llama 3 community license agreement": "LicenseRef-rbl-llama3",
    "llama 3 1 community license agreement": "LicenseRef-scancode-llama-3.1-license-2024",
    "llama 3 2 community license agreement": "LicenseRef-scancode-llama-3.2-license-2024",
    "llama 3 3 community license agreement": "LicenseRef-scancode-llama-3.3-license-2024",
    "llama 4 community license agreement": "LicenseRef-scancode-llama-4-license-2025",
    "creativeml open rail m": "LicenseRef-scancode-stable-diffusion-2022-08-22",
    "creativeml open rail plus plus m": "LicenseRef-rbl-openrail-plus-plus",
    "bigcode open rail m v1": "LicenseRef-scancode-bigcode-open-rail-m-v1",
    "bigscience rail license v1 0": "LicenseRef-scancode-bigscience-rail-1.0",
    "stability ai community license agreement": "LicenseRef-scancode-stability-ai-community-2024",
    "flux 1 dev non commercial license": "LicenseRef-scancode-flux-1-nc",
    "deepseek license agreement version 1 0": "LicenseRef-scancode-deepseek-la-1.0",
    "tongyi qianwen license agreement": "LicenseRef-scancode-tongyi-qianwen-2023",
    "nvidia open model license agreement": "LicenseRef-scancode-nvidia-open-model-2025-04-28",
    "qwen license agreement": "LicenseRef-rbl-qwen",
    "qwen research license agreement": "LicenseRef-rbl-qwen-research",
    "mistral ai research license": "LicenseRef-rbl-mistral-research",
}
"""Words with which a text begins -> expression."""


def _words(line: str) -> str:
    return " ".join(_WORD.findall(line.lower().replace("++", " plus plus ")))


def digest(text: str) -> str:
    """SHA-256 of a licence's words, without what copies of it differ in."""
    lines = []
    for line in text.splitlines():
        lower = line.lower()
        words = _words(_NUMBER.sub("", lower))
        drop = _COPYRIGHT.match(lower) and not _TERMS.search(lower)
        if words and not drop and not _HEADING.issuperset(words.split()):
            lines.append(words)
    whole = " ".join(lines)
    whole = whole.replace("copyright owner", "copyright holder").replace("acknowledgment", "acknowledgement")
    return hashlib.sha256(_NAMES.sub(_NAMED, whole).encode()).hexdigest()


def recognise(data: bytes) -> Recognised | None:
    """Which licence a file holds, or None where nobody here can tell.

    Args:
        data: The file; of one longer than 1 MiB nothing is said.
    """
    if len(data) > _TEXT_BYTES:
        return None
    text = data.decode("utf-8", "replace")
    if (expression := DIGESTS.get(digest(text))) is not None:
        return Recognised(expression, "text")
    beginning = _words(text[:_TITLE_BYTES]).removeprefix("the ")
    for title, expression in TITLES.items():
        if f"{beginning} ".startswith(f"{title} "):
            return Recognised(expression, "title")
    return None
