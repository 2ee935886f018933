"""Inputs that are small and ask for much: time that grows with the square, nesting, numbers of thousands of digits."""

from __future__ import annotations

import gzip
import random

_MIB = 1 << 20


def _filled(before: bytes, piece: bytes, after: bytes = b"", size: int = 200 << 10) -> bytes:
    """As many pieces as fit."""
    return before + piece * ((size - len(before) - len(after)) // len(piece)) + after


JSON = (
    _filled(b"[", b"[],", b"[]]", _MIB - 64),
    _filled(b"[", b"{},", b"{}]", _MIB - 64),
    _filled(b'{"weight_map":{', b'"":{},', b'"x":{}}}'),
    _filled(b"", b"["),
    _filled(b"", b'{"a":'),
    b"[" * 400 + b"]" * 400,
    b"[" * 33 + b"]" * 33,
    b'{"r":' + b"9" * 200_000 + b"}",
    b'{"r":-' + b"9" * 5000 + b"}",
    b'{"r":1e' + b"9" * 5000 + b"}",
    b'{"r":0.' + b"1" * 200_000 + b"}",
    b'{"peft_type":"LORA","peft_type":"IA3"}',
    b'{"peft_type":"\\ud800"}',
    b'{"peft_type":"' + b"\\u0000" * 20_000 + b'"}',
    _filled(b'["', b"\\\\", b'"]'),
    _filled(b'["', b'","', b'"]'),
    b"{" + b",".join(b'"%d":0' % number for number in range(20_000)) + b"}",
    b"{" + b",".join(b'"%d":{"a":[%d]}' % (number, number) for number in range(10_000)) + b"}",
    b"[" + b",".join(b'"%d"' % number for number in range(20_000)) + b"]",
    b'{"peft_type":"LORA","layer_replication":[[0,100000]]}',
    b'{"peft_type":"LORA","r":2,"layer_replication":[[0,100000]],"rank_pattern":{"(.*)*x":2}}',
    b'{"peft_type":"LORA","layer_replication":[[0,9007199254740991]]}',
    b'{"peft_type":"LORA","r":2,"lora_alpha":1,"rank_pattern":{"(a+)+$":2,"(.*.*.*)*x":2}}',
    b'{"peft_type":"LORA","target_modules":"(a+)+$","exclude_modules":"((a*)*)*$"}',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0",
    b"NaN",
    b"[-0,1E400,-1E400]",
)


def _spans(*spans: tuple[int, int], size: int) -> bytes:
    """A safetensors file of as many tensors of four-byte elements, and as many bytes of data."""
    entries = [
        b'"t%d":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}' % (at, (end - begin) // 4, begin, end)
        for at, (begin, end) in enumerate(spans)
    ]
    text = b"{" + b",".join(entries) + b"}"
    return len(text).to_bytes(8, "little") + text + bytes(size)


HEADERS = (
    _spans((0, 4), (0, 4), size=4),
    _spans((0, 8), (4, 8), size=8),
    _spans((0, 8), (4, 12), size=12),
    _spans((0, 4), (8, 12), size=12),
    _spans((4, 8), size=8),
    _spans((0, 4), size=8),
    _spans((0, 8), size=4),
    _spans((0, 4), (4, 4), (2, 2), size=4),
    *((len(text)).to_bytes(8, "little") + text for text in JSON),
    (1 << 63).to_bytes(8, "little") + b"{}",
    (100_000_000).to_bytes(8, "little") + b"{}",
    b"\xff" * 8,
    b'\x4b\0\0\0\0\0\0\0{"../../x":{"dtype":"F32","shape":[9007199254740991,0],"data_offsets":[0,0]}}',
)

TOML = (
    b"[storage]\nthreads = 0x" + b"f" * 6000,
    b"[storage]\nthreads = 0b" + b"1" * 60_000,
    b"[gc]\ngrace = " + b"9" * 60_000,
    b"x = 1e" + b"9" * 60_000,
    b"a." * 32_000 + b"a = 1",
    b"[" + b"a." * 32_000 + b"a]",
    b"[[" + b"a." * 32_000 + b"a]]",
    b"x = {" + b"a." * 32_000 + b"a = 1}",
    b"\n".join(b"a" + b".a" * 120 + b".b%d = 1" % number for number in range(250)),
    b'"a"."' + b'"."' * 20_000 + b'" = 1',
    b"a = " + b"[" * 65_000,
    b"a = " + b"{a = " * 13_000,
    b"[[a]]\n" * 10_000,
    b"".join(b"[a%d]\n" % number for number in range(8000)),
    b'a = """' + b'""\\' * 21_000,
    b"a = 1979-05-27T07:32:00+99:99",
    b"a = 9999-99-99",
    b'author = "\\uD800"',
    b'author = "\\UFFFFFFFF"',
    b"author = 5\n[storage]\n[storage]",
    b"storage = 1",
    b"[storage]\ncompression = ['fast']",
    b"\xff",
    b" " * 65_000,
    b"#" * 65_000,
    b"x" * 70_000,
)

CARDS = (
    _filled(b"---\n", b" "),
    _filled(b"---\n", b"\n---x"),
    _filled(b"---\n", b"--- \n--- x\n"),
    _filled(b"---", b" \t"),
    _filled(b"", b" "),
    _filled(b"---\nlicense: ", b"[", b"\n---\n", 250 << 10),
    _filled(b"---\nlicense: ", b"{", b"\n---\n", 250 << 10),
    _filled(b"---\n", b"? ", b"\n---\n", 250 << 10),
    _filled(b"---\n", b"- ", b"\n---\n", 250 << 10),
    _filled(b"---\n", b"a: ", b"\n---\n", 250 << 10),
    _filled(b"---\nx: [", b"a,", b"]\n---\n", 250 << 10),
    _filled(b"---\nx: [", b"{},", b"]\n---\n", 250 << 10),
    _filled(b"---\nx: '", b"''", b"'\n---\n", 250 << 10),
    _filled(b'---\nx: "', b"\\x41", b'"\n---\n', 250 << 10),
    _filled(b"---\nx: |\n", b" a\n", b"\n---\n", 250 << 10),
    _filled(b"---\n", b"&a &b ", b"\n---\n", 250 << 10),
    _filled(b"---\n", b"%TAG ! x\n", b"\n---\n", 250 << 10),
    b"---\n" + b"".join(b"x%d: 1\n" % number for number in range(20_000)) + b"---\n",
    b"---\na: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 120)) + b"---\n",
    b"---\n<<: &a {<<: *a}\n---\n",
    b"---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
    b"---\nlicense: !!binary '!!!'\nlanguage: !!timestamp 2001-99-99\ndatasets: !!int x\n---\n",
    b"---\nlicense: 0x" + b"f" * 10_000 + b"\nbase_model: 190:20:30\n---\n",
    b"---\ndatasets:\n" + b"".join(b"- d%d\n" % number for number in range(20_000)) + b"---\n",
)


def _binary(length: int, seed: int) -> bytes:
    return bytes(random.Random(seed).choices(b"ab", k=length))


PATTERNS = (
    # Names of two letters are all alike, and comparing them for a hint takes the square of their length.
    b"\n".join(_binary(180, seed) for seed in range(3000)),
    b"\n".join(_binary(900, seed) for seed in range(800)),
    b"*a" * 500 + b"b\n" + b"\n".join(b"a" * 1000 for _ in range(50)),
    b"**/" * 300 + b"x\n" + b"\n".join(b"a/" * 500 for _ in range(50)),
    b"?" * 1000 + b"b\n" + b"a" * 1000,
    b"[!" + b"a-" * 400 + b"]*" + b"\n" + b"a" * 1000,
    b"(a+)+$\n" + b"a" * 1000,
    b"[[:alpha:]&&~~||]\nx",
    b"\n".join(b"a" + b"/a" * 400 + b"/%d" % number for number in range(400)),
)

PICKLES = (
    gzip.compress(bytes(50 << 20), 1)[:4096],
    b"(" * 4096,
    b"]" + b"(" * 4000 + b"e" * 95,
    b"PK\x03\x04" * 60_000,
    b"PK\x01\x02" + b"PK\x03\x04" * 60_000,
    b"\x93NUMPY\x01\0v\0{" + b"'descr': '|O" * 300,
    b"c" + b"a\n" * 2000,
    b"X\xff\xff\xff\xff" * 800,
)
