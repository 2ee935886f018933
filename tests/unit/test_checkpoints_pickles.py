from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from rblstore.checkpoints.pickles import HEAD_BYTES, looks_like_pickle, zip_names_pickle


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("loaded",)


VALUES = [
    {"a": 1},
    [1, 2],
    (1, "x"),
    Runs(),
    OrderedDict(w=[0.5] * 900),
    {n: str(n) for n in range(900)},
    list(range(3000)),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_pickles_of_every_protocol_are_found_under_a_harmless_name(protocol: int, value: object) -> None:
    data = pickle.dumps(value, protocol)
    assert looks_like_pickle(data[:HEAD_BYTES], "tokenizer.json")
    assert looks_like_pickle(gzip.compress(data)[:HEAD_BYTES], "tokenizer.json")
    assert looks_like_pickle(zlib.compress(data)[:HEAD_BYTES], "tokenizer.json")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_archives_are_found(zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, stream, _use_new_zipfile_serialization=zipped)
    assert looks_like_pickle(stream.getvalue()[:HEAD_BYTES], "model.dat")


def test_a_pickle_behind_other_zip_members_is_found_at_the_end() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "x" * 10_000)
        archive.writestr("model/data.pkl", pickle.dumps([1]))
    assert not looks_like_pickle(stream.getvalue()[:HEAD_BYTES], "model.zip")
    assert zip_names_pickle(stream.getvalue()[-1000:])


def test_the_tar_that_torch_once_wrote_is_found() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"\0\0\0\0"))
    assert looks_like_pickle(stream.getvalue()[:HEAD_BYTES], "old")


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: np.zeros(2, dtype=[("a", "<f4"), ("b", "O")])])
def test_numpy_arrays_of_objects_are_found(wrap: object) -> None:
    array = wrap(np.array([{"a": 1}, None], dtype=object))  # type: ignore[operator]
    stream, archive = io.BytesIO(), io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    np.savez(archive, array)
    assert looks_like_pickle(stream.getvalue()[:HEAD_BYTES], "table.npy")
    assert looks_like_pickle(archive.getvalue()[:HEAD_BYTES], "table.npz")


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a/optimizer.pt", "m.pth", "x.CKPT", "v.pkl"),
        *("v.pickle", "v.joblib", "v.pkl.gz", "training_args.bin"),
    ],
)
def test_a_name_that_promises_pickled_weights_counts_for_unknown_content(name: str) -> None:
    assert looks_like_pickle(b"\x00\xfe\x01\xff" * 20, name)
    assert looks_like_pickle(b"", name)


SENTENCEPIECE = (
    b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\n\n\x03<s>\x15\x00\x00\x00\x00\x18\x03\n\x0b\n\x04</s>\x15"
)
HARMLESS = {
    "config.json": json.dumps({"model_type": "llama", "hidden_size": 8}, indent=2).encode(),
    "tokenizer.json": b'{\n  "version": "1.0",\n  "truncation": null, "added_tokens": []}',
    "special.json": b"}",
    "vocab.txt": "[PAD]\n[unused0]\n(\n)\nc\nd\n.\n\u4e00\n##s\n".encode(),
    "parens.txt": b"(lp0\nI am a line\n(dp1\nof text\n.\n",
    "global.txt": b"cat\ndog\n(hi\n.\n",
    "marks.txt": b"((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((\n",
    "brackets.txt": b"]]]]))))NNNN....",
    "merges.txt": b"#version: 0.2\n\xc4\xa0 t\nc c\n",
    "tokenizer.model": SENTENCEPIECE,
    "README.md": b"---\nlicense: mit\n---\n# Model\n",
    "chat_template.jinja": b"{% for message in messages %}{{ message }}{% endfor %}",
    "model.onnx": b"\x08\x07\x12\x07pytorch\x1a\x052.1.0",
    "model.gguf": b"GGUF\x03\0\0\0" + b"\0" * 40,
    "ggml-model.bin": b"ggml" + b"\0" * 40,
    "openvino/openvino_model.bin": b"\x01\xfe" * 40,
    "tf_model.h5": b"\x89HDF\r\n\x1a\n\0\0",
    "flax_model.msgpack": b"\x82\xa6params\x80",
    "events.out.tfevents.1": b"\x18\0\0\0\0\0\0\0\xa3\x7fK\"\t\0\0\xc0",
    "sample.pt": "frases em portugu\u00eas\n".encode(),
    "notes.bin": b"plain notes\n",
    "image.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "data.parquet": b"PAR1\x15\x04\x15",
    "text.gz": gzip.compress(b"(plain text)\n" * 9, mtime=0),
    "utf16.txt": "caf\u00e9".encode("utf-16"),
    "empty.txt": b"",
    "cp1252.txt": b"\x80 100\n",
    "high.dat": b"\x80\x02\x00\x01",
    "code.py": b"from torch import nn\n",
    ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_model_directory_otherwise_holds_is_never_flagged(name: str) -> None:
    assert not looks_like_pickle(HARMLESS[name][:HEAD_BYTES], name)


def test_plain_numpy_and_zip_files_are_never_flagged() -> None:
    array, several, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(10, dtype=np.float32))
    np.savez(several, a=np.arange(10), b=np.zeros(3, dtype=[("O", "<f4")]))
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("notes.txt", "about a pickle")
    for name, stream in (("a.npy", array), ("s.npz", several), ("z.zip", archive)):
        assert not looks_like_pickle(stream.getvalue()[:HEAD_BYTES], name)
        assert not zip_names_pickle(stream.getvalue())


def test_no_text_of_the_standard_library_is_flagged() -> None:
    sources = sorted(Path(json.__file__).parent.parent.glob("*.py"))
    assert len(sources) > 100
    flagged = [path.name for path in sources if looks_like_pickle(path.read_bytes()[:HEAD_BYTES], path.name)]
    assert flagged == []
