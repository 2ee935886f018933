"""Everything that reads bytes from outside, as a table: name, valid inputs, and a function that reads one.

A function returns where the input was read and raises an RblError where it was refused. Anything else is a defect, and
so is a result that an independent look at it finds wrong. :func:`make_targets` gives the whole table; what needs a
directory is in ``repository_targets.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bombs
import packs_by_hand
from mutation import JSON_WORDS, Pairs
from tiny_checkpoints import adapter_name

from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.adapter_effects import adapter_effects
from rblstore.checkpoints.checkout_layout import CheckoutManifest
from rblstore.checkpoints.logical_tensors import logical_tensors, primary_weight_files
from rblstore.checkpoints.merging import lora_scaling
from rblstore.checkpoints.model_card import claims_from_files
from rblstore.checkpoints.name_patterns import choose_names
from rblstore.checkpoints.pickles import looks_like_pickle, zip_names_pickle
from rblstore.checkpoints.safetensors_header import encode_header, read_header
from rblstore.checkpoints.state_tree import decode_tree
from rblstore.configuration import parse_configuration
from rblstore.divergence.probe_file import parse_prompts
from rblstore.errors import RblError
from rblstore.objects.canonical import decode_json, encode_json
from rblstore.objects.content_records import FileManifest, NamedTensor, StoredTensor
from rblstore.objects.dtypes import span_bytes
from rblstore.objects.evidence_records import Claim
from rblstore.objects.ids import ContentId, parse_prefix
from rblstore.objects.kinds import parse_record
from rblstore.objects.paths import check_name, check_path, check_paths, check_ref_name
from rblstore.objects.references import references
from rblstore.opening import FORMAT, check_format
from rblstore.operations.stat_cache_entries import Entry, FileStamp, KnownFile, encode_entries, parse_entries
from rblstore.provenance.license_texts import recognise
from rblstore.storage.refs_log import RefsLog, parse_log

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
VECTORS = tuple(text.encode() for text in re.findall(r"```vector\n(.*?)\n```", PAGE, re.DOTALL))
_EXAMPLE = re.search(r"vector: checkout -->\n\n```json\n(.*?)\n```", PAGE, re.DOTALL)
assert _EXAMPLE is not None
MANIFEST = _EXAMPLE[1].encode()

Parts = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Target:
    """One reader of hostile bytes.

    Attributes:
        name: In messages, and on the command line of ``atheris_driver.py``.
        seeds: Valid inputs.
        read: Reads one; raises an RblError or nothing.
        words: What the format is made of.
        json: What of an input stands before the JSON in it, the JSON, and what comes after; None where it has none.
        mend: Makes checksums right again, so that what lies behind them is reached; None where there are none.
        weight: How often it is drawn, against 100 for the others.
        memory: Bytes that it may take beyond 64 MiB, where the format itself says so.
        hostile: Inputs to begin with that are not valid: bombs, cycles, torn tails.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    words: tuple[bytes, ...] = ()
    json: Callable[[bytes], Parts] | None = None
    mend: Callable[[bytes], bytes] | None = None
    weight: int = 100
    memory: int = 0
    hostile: tuple[bytes, ...] = ()


def _whole(data: bytes) -> Parts:
    return b"", data, b""


# -- safetensors ----------------------------------------------------------------------------------------------------

_TENSORS = {"a.weight": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("U8", ()), "d": ("F4", (2,)), "e": ("I64", (0, 5))}


def _file(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> bytes:
    size = sum(span_bytes(dtype, shape) for dtype, shape in tensors.values())
    return encode_header(tensors, metadata) + bytes(size)


def _read_safetensors(data: bytes) -> None:
    header = read_header(lambda offset, length: data[offset : offset + length], len(data))
    position = header.data_offset
    names = [span.name for span in header.tensors]
    for span in header.tensors:
        assert header.data_offset + span.begin == position
        assert span.size == span_bytes(span.dtype, span.shape)
        position += span.size
    assert position == len(data)
    assert len(set(names)) == len(names)


class _Tensor:
    """Stands for a tensor: the parser asks its array for a shape only."""

    dtype, shape = "F32", (2,)

    def numpy(self) -> Any:
        return self


def _read_state(data: bytes) -> None:
    tree = decode_tree(data, {"moment": _Tensor(), "list.0": _Tensor()})  # type: ignore[dict-item]
    waiting, seen = [tree], 0
    while waiting:
        value = waiting.pop()
        assert type(value) in (
            type(None),
            bool,
            int,
            float,
            str,
            bytes,
            dict,
            OrderedDict,
            Counter,
            list,
            tuple,
            _Tensor,
        )
        seen += isinstance(value, _Tensor)
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    assert seen == 2


_STATE = encode_json({
    "rblstore_state": 1,
    "tree": ["dict", "m", ["tensor", "moment"], "l", ["list", ["array", "list.0"], ["float", "0.1"], 7, None, "x"],
             3, ["tuple", ["int", "-ffffffffffffffffffff"], ["bytes", "00ff"], ["counter", 1, 2], True],
             "o", ["ordered", ["int", "ffffffffffffffff"], ["float", "nan:7ff8000000000000"]]],
})  # fmt: skip
_STATE_WORDS = (b'["float","inf"]', b'["int","', b'["tensor","moment"]', b'["scalar","moment"]', b'["dict",',
                b'["tuple",', b'["ordered",', b'["counter",', b'["bytes","', b"-0.0", b"1e400", b"nan:")  # fmt: skip


def _mend_state(data: bytes) -> bytes:
    return canonical(data)


def _header_parts(data: bytes) -> Parts:
    end = 8 + int.from_bytes(data[:8], "little")
    return b"", data[8:end], data[end:]


def _mend_length(data: bytes) -> bytes:
    end = data.rfind(b"}") + 1
    return max(end - 8, 0).to_bytes(8, "little") + data[8:]


# -- records and logs -----------------------------------------------------------------------------------------------


def _read_record(data: bytes) -> None:
    record = parse_record(data)
    assert record.encode() == data, "two encodings of one record"
    for target, _ in references(record):
        assert re.fullmatch("[0-9a-f]{64}", target)


def _record_parts(data: bytes) -> Parts:
    line, end, body = data.partition(b"\n")
    return line + end, body, b""


def canonical(text: bytes) -> bytes:
    """JSON in canonical form where it has one."""
    try:
        return encode_json(json.loads(text))
    except (ValueError, RecursionError, RblError):
        return text


def _mend_record(data: bytes) -> bytes:
    line, end, body = data.partition(b"\n")
    return line + end + canonical(body)


def _check_json(data: bytes) -> None:
    """Looks at what was accepted without the code that accepted it."""
    waiting: list[tuple[int, Any]] = [(0, json.loads(data, object_pairs_hook=Pairs))]
    while waiting:
        depth, value = waiting.pop()
        assert depth <= 32
        if isinstance(value, Pairs):
            assert len({key for key, _ in value}) == len(value)
            waiting += [(depth, key) for key, _ in value]
        if isinstance(value, list):
            waiting += [(depth + 1, child[1] if isinstance(value, Pairs) else child) for child in value]
        elif isinstance(value, str):
            value.encode("utf-8")
        elif isinstance(value, (int, float)):
            assert abs(value) < float("inf")
            assert isinstance(value, float) or abs(value) < 1 << 53


def _read_json(data: bytes) -> None:
    value = decode_json(data, what="input", max_bytes=1 << 20, max_entries=50_000)
    _check_json(data)
    again = encode_json(value)
    assert encode_json(decode_json(again, what="input", max_bytes=8 << 20)) == again


def _mend_log(data: bytes) -> bytes:
    import xxhash

    lines: list[bytes] = []
    before = b"0" * 64
    previous: bytes | None = None
    for number, line in enumerate(data.split(b"\n")[:50], 1):
        if not line:
            continue
        body = canonical(line.split(b" ", 3)[-1])
        if previous is not None:
            body = re.sub(rb'"previous":(null|"[0-9a-f]*")', b'"previous":"' + previous + b'"', body, count=1)
        checked = before + b" " + str(number).encode() + b" " + body
        lines.append(f"{xxhash.xxh3_64_intdigest(checked):016x} ".encode() + checked)
        before = hashlib.sha256(lines[-1]).hexdigest().encode()
        previous = hashlib.sha256(b"rblstore/operation/1\n" + body).hexdigest().encode()
    return b"\n".join(lines) + b"\n"


def _log_seeds() -> tuple[bytes, ...]:
    found = re.search(r"```refs-log\n(.*?\n)```", PAGE, re.DOTALL)
    assert found is not None
    first = found[1].encode()
    second = first.replace(b'"sequence":1', b'"sequence":2')
    third = first.replace(b'"sequence":1', b'"sequence":3')
    return first, _mend_log(first + second + third)


def _log_reader(folder: Path) -> Callable[[bytes], None]:
    path = folder / "refs.log"

    def read(data: bytes) -> None:
        parsed = parse_log(data)
        assert [operation.sequence for operation in parsed.operations] == list(range(1, len(parsed.operations) + 1))
        path.write_bytes(data)
        log = RefsLog(path)
        assert log.read() == parsed
        last = log.last()
        assert (0 if last is None else last[0]) == len(parsed.operations)
        with log.locked() as writer:
            assert writer.last_sequence == len(parsed.operations)

    return read


# -- settings and what is derived -----------------------------------------------------------------------------------

_TOML = (
    b"[", b"]", b"[[", b"]]", b"=", b".", b'"""', b"'''", b"0x", b"1979-05-27T07:32:00Z", b"nan", b"inf", b"{", b"}",
    b"a.b.c.d = 1\n", b"[storage]\n", b"[gc]\n", b"grace = ", b"threads = ", b"x." * 500, b"f" * 6000, b"9" * 6000,
    b"[" * 500, b"\\u0000", b"\\UFFFFFFFF", b"\n", b"#", b"[a]\n" * 50, b"{a=" * 200, b"1_0", b"e99999",
)  # fmt: skip
_CONFIG = b'author = "Ada"\n[storage]\ncompression = "max"\nthreads = 2\n[gc]\ngrace = 7\n# words\n'


def _stat_cache_seed() -> bytes:
    known = KnownFile(ContentId("a" * 64), 5, None, ("a holds 1 NaN",))
    lines = {}
    for number in range(3):
        key = hashlib.sha256(bytes([number])).hexdigest()
        lines[key] = Entry(FileStamp(5, 10**18, 10**18 + 7, 9, 4), 10**18 + 10**11, known).encode(key)
    return encode_entries(lines)


def _mend_stat_cache(data: bytes) -> bytes:
    body = data[:-65]
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _format_reader(folder: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        (folder / "format").write_bytes(data)
        check_format(folder)
        assert data == FORMAT

    return read


# -- adapters, cards, prompts -----------------------------------------------------------------------------------------

_ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"layers.0.q_proj": 2}, "alpha_pattern": {".*q_proj": 8.0}, "modules_to_save": ["lm_head"],
    "bias": "none", "layer_replication": [[0, 2]], "base_model_name_or_path": "org/base", "revision": None,
    "auto_mapping": None, "init_lora_weights": True, "use_dora": False, "trainable_token_indices": {"embed": [1, 2]},
    "target_parameters": None, "lora_bias": False, "megatron_config": None,
}  # fmt: skip


def _tensor(*shape: int) -> StoredTensor:
    return StoredTensor("F32", shape, ContentId(hashlib.sha256(str(shape).encode()).hexdigest()))


_BASE = {f"model.layers.{layer}.self_attn.{part}_proj.weight": _tensor(4, 4) for layer in range(2) for part in "qv"} | {
    "model.embed_tokens.weight": _tensor(8, 4), "lm_head.weight": _tensor(8, 4),
}  # fmt: skip
_FACTORS = {
    adapter_name(layer, part, factor): _tensor(*((2, 4) if factor == "A" else (4, 2)))
    for layer in range(2)
    for part in "qv"
    for factor in "AB"
}


def _read_adapter(data: bytes) -> None:
    config = parse_adapter_config(data)
    assert isinstance(config.saved_modules, tuple)
    config.saves_module("model.layers.0.self_attn.q_proj" * 5)
    try:
        lora_scaling(config, "model.layers.0.self_attn.q_proj")
    except RblError:
        pass
    effects, _ = adapter_effects(config, _FACTORS, _BASE, {"config.json": ContentId("c" * 64)})
    assert len({(effect.on, effect.target) for effect in effects}) == len(effects)


_YAML = (
    b"---\n", b"license: ", b"- ", b"&a ", b"*a", b"!!python/object/apply:os.system ", b"!!python/name:os.system ",
    b"<<: ",
    b"? ", b"| ", b"> ", b"[", b"]", b"{", b"}", b"%TAG ! x\n", b"%YAML 9.9\n", b"\t", b"\xef\xbb\xbf", b"\x85",
    b"[" * 2000, b"{" * 2000, b"- " * 2000, b"? " * 2000, b"&a [*a,*a]\n", b'"\\ud800"', b"\x00", b"0x" + b"f" * 300,
    b"\n" * 50,
)  # fmt: skip
_CARD = b"---\nlicense: mit\nbase_model: &b\n- org/base\ndatasets: [a, b]\nlanguage:\n  - en\nx: |\n  y\n---\n# T\n"


def _read_card(data: bytes) -> None:
    for path in ("README.md", "config.json", "adapter_config.json", "LICENSE.txt"):
        claims, warnings = claims_from_files({path: lambda: data}, recognise)
        assert all(claim.origin == path for claim in claims)
        assert all(Claim.read(claim.body()) == claim for claim in claims)  # a record can hold it
        assert all(isinstance(warning, str) for warning in warnings)


def _read_prompts(data: bytes) -> None:
    for name in ("p.json", "p.jsonl", "p.txt"):
        try:
            prompts = parse_prompts(data, name)
        except RblError:
            continue
        assert prompts
        assert len({prompt.id for prompt in prompts}) == len(prompts)


def _read_index(data: bytes) -> None:
    shards = {
        f"model-0000{at}-of-00002.safetensors": FileManifest(
            ContentId("d" * 64), (NamedTensor(f"t{at}", _tensor(at)), NamedTensor(f"u{at}", _tensor(2)))
        )
        for at in (1, 2)
    }
    primary = primary_weight_files(sorted(shards), data)
    assert set(primary) <= set(shards)
    logical_tensors(shards, primary, data)


_INDEX = json.dumps({
    "metadata": {"total_size": 20},
    "weight_map": {f"{name}{at}": f"model-0000{at}-of-00002.safetensors" for name in "tu" for at in (1, 2)},
}).encode()  # fmt: skip


# -- names ----------------------------------------------------------------------------------------------------------

_NAME_WORDS = (
    b"/", b"..", b"../", b"\\", b"\0", b"\n", b":", b"*", b"**", b"?", b"[", b"]", b"[!a-", b"]*" * 50, b"*a" * 200,
    b"**/" * 200, b"[a" * 100, b"CON", b".rbl", b".git", b"\xe2\x80\xae", b"e\xcc\x81", b"\xc3\xa9", b"\xff", b" ",
    b".",
    b"~", b"^", b"@{", b"}", b"~999999999", b"^0" * 100, b"refs/heads/", b"(a+)+$", b"\\Q", b"[z-a]", b"[[:x:]]",
    b"&&", b"--",
)  # fmt: skip
_LETTERS = b"ab" * 90
_NAMES = b"*.json\nconfig.json\na/b/c.json\nmodel.layers.0.weight\n" + _LETTERS + b"\n" + _LETTERS[::-1]


def _read_patterns(data: bytes) -> None:
    pattern, *names = data.decode("utf-8", "replace").split("\n")
    chosen = choose_names(pattern, names, "file")
    assert chosen <= set(names)


def _read_paths(data: bytes) -> None:
    names = data.decode("utf-8", "surrogateescape").split("\n")
    for name in names[:20]:
        for check in (
            lambda name: check_name(name, "behavior"),
            lambda name: check_ref_name(name, "tag"),
            parse_prefix,
        ):
            try:
                check(name)
            except RblError:
                continue
            check_path(name)  # what is a name is a path
    check_paths(names)
    for name in names:
        assert not re.search(r'[\x00-\x1f\\:*?"<>|]|(^|/)(\.\.?)?(/|$)', name)
        assert not name.isascii() or not re.search(r"(^|/)\.(rbl|git)(/|$)", name, re.IGNORECASE)
        name.encode("utf-8")
    assert len({name.casefold() for name in names}) == len(names)


def _read_pickle(data: bytes) -> None:
    for name in ("a.bin", "a.safetensors", "tokenizer.json"):
        looks_like_pickle(data[:4096], name)
    zip_names_pickle(data)


def parser_targets(folder: Path) -> tuple[Target, ...]:
    """The readers that need no repository.

    Args:
        folder: Where those that read a file may write one.
    """
    small = _file(_TENSORS)
    wide = _file({f"layers.{at}.weight": ("BF16", (2, 2)) for at in range(60)}, {"format": "pt"})
    return (
        Target("safetensors", (small, wide, _file({}), _file({"x" * 900: ("F32", (1,))})), _read_safetensors,
               (*JSON_WORDS, b'"data_offsets":[0,4]', b'"shape":[]', b'"dtype":"F6_E2M3"'), _header_parts, _mend_length,
               hostile=bombs.HEADERS),
        Target("record", VECTORS, _read_record, JSON_WORDS, _record_parts, _mend_record, weight=200,
               hostile=tuple(b"rblstore/identity/1\n" + one for one in bombs.JSON[:8])),
        Target("json", (*(_record_parts(one)[1] for one in VECTORS), b'[1,2.5,"\\u00e9",null]'), _read_json,
        JSON_WORDS, _whole,
               hostile=bombs.JSON),
        Target("state-tree", (_STATE,), _read_state, (*_STATE_WORDS, *JSON_WORDS), _whole, _mend_state,
               hostile=bombs.JSON),
        Target("refs-log", _log_seeds(), _log_reader(folder), (b" ", b"\n", *JSON_WORDS), None, _mend_log),
        Target("config-toml", (_CONFIG, b""), parse_configuration, _TOML, hostile=bombs.TOML),
        Target("format", (FORMAT,), _format_reader(folder), (b"rblstore", b"2", b"\r\n"), weight=10),
        Target("stat-cache", (_stat_cache_seed(),), _read_stat_cache, (b"-", b" ", b"\n", b"[]", *JSON_WORDS), None,
               _mend_stat_cache),
        Target("adapter-config", (json.dumps(_ADAPTER).encode(), b'{"peft_type":"LORA","r":2}'), _read_adapter,
               (*JSON_WORDS, b"(a+)+$", b"XLORA", b"PREFIX_TUNING", b"trust_remote_code"), _whole,
               hostile=bombs.JSON),
        Target("model-card", (_CARD,), _read_card, _YAML, hostile=bombs.CARDS),
        Target("card-json", (b'{"_name_or_path":"x"}', json.dumps(_ADAPTER).encode()), _read_card, JSON_WORDS, _whole,
        hostile=bombs.JSON),
        Target("checkout-manifest", (MANIFEST,), CheckoutManifest.parse, JSON_WORDS, _whole, hostile=bombs.JSON),
        Target("shard-index", (_INDEX,), _read_index, JSON_WORDS, _whole, hostile=bombs.JSON),
        Target("probe-file", (b'["a","b"]', b'[{"id":"x","tokens":[1,2]},{"text":"t"}]', b'"a"\n{"text":"b"}\n',
        b"one\ntwo\n"),
               _read_prompts, JSON_WORDS, _whole, hostile=bombs.JSON),
        Target("name-patterns", (_NAMES, b"**/*.json\na/b.json", b"[a-d]*?\nabc"), _read_patterns, _NAME_WORDS,
        hostile=bombs.PATTERNS),
        Target("paths", (b"config.json\nsub/model.safetensors\nbehaviors/x/y", b"a\nb/c\n\xc3\xa9"), _read_paths,
        _NAME_WORDS, hostile=bombs.PATTERNS),
        Target("pickles", (b"\x80\x04\x95\0\0\0\0\0\0\0\0}.", b"PK\x03\x04" + bytes(26) + b"data.pkl", b"(dp0\n."),
        _read_pickle,
               (b"PK\x03\x04", b"PK\x01\x02", b".pkl", b"\x93NUMPY\x01\0v\0{'descr': '|O'", b"\x1f\x8b\x08\0",
               b"x\x9c"), hostile=bombs.PICKLES),
        *packs_by_hand.pack_targets(Target),
    )  # fmt: skip


def _read_stat_cache(data: bytes) -> None:
    for line in parse_entries(data).values():
        try:
            entry = Entry.parse(line)
        except RblError:
            continue
        entry.holds(FileStamp(5, 10**18, 10**18 + 7, 9, 4), 10**19)


def make_targets(folder: Path | None = None) -> dict[str, Target]:
    """All of them, by name.

    Args:
        folder: Where they may write; None for a folder in memory that nobody else uses.
    """
    from repository_targets import repository_targets

    if folder is None:
        folder = scratch()
    found = (*parser_targets(folder), *repository_targets(folder, Target))
    return {target.name: target for target in found}


def scratch() -> Path:
    """A new folder, in memory where the system has such a place: fuzzing needs no disk."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="rbl-hostile-", dir=shared if shared.is_dir() else None))
