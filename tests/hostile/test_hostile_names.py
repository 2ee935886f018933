"""R9: whatever a name says, and through whichever door it comes, nothing is written outside of a checkout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_checkpoints
from fuzz_targets import MANIFEST
from hostile_names import COLLIDING, HOSTILE, hostile_names
from packs_by_hand import build, named_pack, sha256

import rblstore
from rblstore.checkpoints.checkout_layout import CheckoutManifest, behavior_folder, plan_checkout
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.checkpoints.logical_tensors import INDEX_FILE, primary_weight_files
from rblstore.checkpoints.source_directory import scan_directory
from rblstore.objects.canonical import Json, record_bytes
from rblstore.objects.content_records import FileEntry
from rblstore.objects.ids import ContentId
from rblstore.storage.codecs import NO_PARAMETERS, RAW

NAMES = hostile_names()
PAIRS = [*COLLIDING, ("a/b", "a/b/c"), ("sub/Model.safetensors", "SUB/model.safetensors")]


def everything(folder: Path) -> dict[str, str]:
    """Every path beneath a folder with what is there, links not followed."""
    found = {}
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(at, name)
            text = str(path.readlink()) if path.is_symlink() else ""
            data = b"" if path.is_symlink() or path.is_dir() else path.read_bytes()
            found[str(path.relative_to(folder))] = text or hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``around/inside/store`` is a repository; what lies around it must not change."""
    around = tmp_path_factory.mktemp("around")
    inside = around / "a" / "b" / "c" / "inside"
    inside.mkdir(parents=True)
    for folder in (around, around / "a", around / "a" / "b", around / "a" / "b" / "c"):
        (folder / "canary").write_text("sings")
        (folder / "config.json").write_text("mine")
    base = tiny_checkpoints.write_base(inside / "base")
    polite = tiny_checkpoints.write_adapter(inside / "polite")
    with rblstore.init(inside / "store") as repo:
        repo.commit("base", identity=base, behaviors={"polite": polite}, author="Ada")
    return inside


@pytest.fixture(autouse=True)
def _canary(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    around = place.parents[3]
    monkeypatch.chdir(place)
    before = {path: state for path, state in everything(around).items() if "/inside/" not in path}
    yield
    shutil.rmtree(place / "out", ignore_errors=True)
    assert {path: state for path, state in everything(around).items() if "/inside/" not in path} == before


def test_there_are_enough() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 500


# -- records that no version of rblstore would write -------------------------------------------------------------------


def _entry(path: str) -> dict[str, Json]:
    return {"manifest": None, "path": path, "sha256": str(sha256(b"evil")), "size": 4}


def _lenient(kind: str, body: Json) -> bytes:
    """A record's bytes, also where it has no canonical form."""
    try:
        return record_bytes(kind, body)
    except rblstore.RblError:
        text = json.dumps(body, separators=(",", ":"), sort_keys=True)
        return f"rblstore/{kind}/1\n{text}".encode()


class _Forger:
    """Writes packs of records by hand into a copy of a store."""

    def __init__(self, store: Path) -> None:
        self.folder = store / ".rbl"
        self.records: dict[ContentId, bytes] = {}

    def add(self, kind: str, body: Json) -> str:
        data = _lenient(kind, body)
        self.records[sha256(data)] = data
        return str(sha256(data))

    def commit(self, files: list[str], slot: str = "polite", behavior_files: tuple[str, ...] = ()) -> str:
        """A commit of an identity with files of those paths, and maybe of a behavior."""
        identity = self.add("identity", {"files": [_entry(path) for path in files], "tensor_root": "0" * 64})
        slots: list[Json] = []
        if behavior_files or slot != "polite":
            behavior = {
                "effects": [],
                "files": [_entry(path) for path in behavior_files],
                "form": "adapter",
                "ground": [],
            }
            slots = [{"behavior": self.add("behavior", behavior), "name": slot, "weight": 1}]
        composition = self.add("composition", {"identity": identity, "slots": slots})
        return self.add(
            "commit",
            {"author": "x", "composition": composition, "message": "x", "parents": [], "time": "2026-01-01T00:00:00Z"},
        )

    def write(self) -> None:
        contents = [(sha256(b"evil"), 4, [(b"evil", 0, RAW, NO_PARAMETERS, 4, None)])]
        records = [
            (id, len(data), [(data, 0, RAW, NO_PARAMETERS, len(data), None)]) for id, data in self.records.items()
        ]
        for kind, what in (("C", contents), ("R", records)):
            data = build(what, kind)
            pack = named_pack(data)
            (self.folder / "packs" / pack[:2]).mkdir(exist_ok=True)
            (self.folder / "packs" / pack[:2] / f"{pack}.pack").write_bytes(data)


def test_forged_records(place: Path) -> None:
    store = shutil.copytree(place / "store", place / "forged")
    forger = _Forger(store)
    good = forger.commit(["config.json", "sub/x.bin"], behavior_files=("adapter_config.json",))
    bad = [forger.commit([name]) for name in NAMES]
    bad += [forger.commit(["config.json"], behavior_files=(name,)) for name in HOSTILE]
    bad += [forger.commit(["config.json"], slot=name, behavior_files=("x",)) for name in HOSTILE]
    bad += [forger.commit(sorted(pair)) for pair in PAIRS]
    bad += [forger.commit(["behaviors/polite/adapter_config.json"], behavior_files=("adapter_config.json",))]
    bad += [
        forger.commit([name]) for name in ("rbl-composition.json", "RBL-Composition.JSON", "Behaviors/x", "behaviors")
    ]
    forger.write()
    rblstore.reindex(store)
    with rblstore.open(store) as repo:
        repo.checkout(good, "out")  # what is refused below is refused for its name
        assert (place / "out" / "sub" / "x.bin").read_bytes() == b"evil"
        shutil.rmtree("out")
        for number, commit in enumerate(bad):
            with pytest.raises(rblstore.RblError):
                repo.checkout(commit, "out")
            if number % 8 == 0:
                with pytest.raises(rblstore.RblError):
                    repo.checkout(commit, "out", only="**")
            assert not os.path.lexists("out")
    shutil.rmtree(store)


# -- each layer by itself, should the one before it fail --------------------------------------------------------------


@pytest.mark.parametrize("names", [*([name] for name in NAMES), *map(list, PAIRS)], ids=lambda names: ascii(names)[:50])
def test_a_plan(names: list[str]) -> None:
    with pytest.raises(rblstore.RblError):
        plan_checkout([(name, FileEntry(name, sha256(b""), 0)) for name in names], [], "adapters")


def test_the_writer(place: Path) -> None:
    with DirectoryWriter(place / "out") as writer:
        for name in NAMES:
            with pytest.raises(rblstore.InputError):
                writer.new_file(name, 0)
            with pytest.raises(rblstore.InputError):
                writer.write_file(name, [], None, 0)
        building = next(path for path in place.iterdir() if path.name.startswith(".out.rbl-tmp-"))
        assert not any((building / "content").iterdir())


# -- what people are given: directories, headers, indexes, manifests -------------------------------------------------


def test_files_of_a_source(place: Path) -> None:
    refused = 0
    for name in HOSTILE:
        folder = place / "source"
        shutil.copytree(place / "base", folder)
        try:
            (folder / name).write_bytes(b"{}") if "/" not in name else None
        except (OSError, ValueError):
            pass  # this system cannot have such a file
        else:
            try:
                files = {file.path for file in scan_directory(folder).files}
            except rblstore.RblError:
                refused += 1
            else:
                assert files == {"config.json", "model.safetensors"}, ascii(name)
        shutil.rmtree(folder)
    assert refused > 100


def test_names_of_tensors_are_only_names(place: Path) -> None:
    tensors = dict(tiny_checkpoints.base_tensors())
    accepted = [name for name in NAMES if name.isprintable() and 0 < len(name.encode("utf-8", "replace")) < 1024]
    tensors |= {name: tiny_checkpoints.values(1, seed=at) for at, name in enumerate(accepted)}
    base = place / "named"
    shutil.copytree(place / "base", base)
    tiny_checkpoints.write_safetensors(base / "model.safetensors", tensors)
    assert len(accepted) > 300
    with rblstore.init(place / "tensors") as repo:
        repo.commit("names", identity=base, author="Ada")
        repo.checkout("HEAD", "out")
        assert sorted(everything(place / "out")) == ["config.json", "model.safetensors", "rbl-composition.json"]
        shutil.rmtree("out")
        repo.checkout("HEAD", "out", tensors="**")
        assert sorted(everything(place / "out")) == ["rbl-composition.json", "tensors.safetensors"]


def test_patterns_and_names_people_type(place: Path) -> None:
    with rblstore.open(place / "store") as repo:
        for name in HOSTILE:
            for ask in (
                lambda name=name: repo.checkout("HEAD", "out", only=name),
                lambda name=name: repo.checkout("HEAD", "out", tensors=name),
                lambda name=name: repo.commit("x", behaviors={name: "polite"}, author="Ada"),
                lambda name=name: repo.add_probe(name, ["x"], author="Ada"),
                lambda name=name: repo.create_branch(name, author="Ada"),
                lambda name=name: repo.create_tag(name, author="Ada"),
            ):
                try:
                    ask()
                except rblstore.RblError:
                    assert not os.path.lexists("out")
                else:
                    # A star means something in a pattern; whatever it chose is in the composition.
                    assert any(character in name for character in "*?")
                    shutil.rmtree("out")


def test_shard_indexes() -> None:
    for name in NAMES:
        index = json.dumps({"weight_map": {"t": f"{name}.safetensors"}}).encode()
        with pytest.raises(rblstore.RblError):
            primary_weight_files(["model-1.safetensors", INDEX_FILE], index)


def test_manifests_of_checkouts(place: Path) -> None:
    body = json.loads(MANIFEST)
    CheckoutManifest.parse(json.dumps(body).encode())
    with rblstore.open(place / "store") as repo:
        repo.checkout("HEAD", "out")
        for name in NAMES:
            file = {"path": name, "sha256": hashlib.sha256(b"sings").hexdigest(), "size": 5}
            slot = {**body["slots"][0], "name": name, "path": behavior_folder(name)}
            for changed in (
                {**body, "files": [file]},
                {**body, "slots": [slot]},
                {**body, "slots": [{**body["slots"][0], "path": name}]},
            ):
                data = json.dumps(changed).encode()
                (place / "out" / "rbl-composition.json").write_bytes(data)
                with pytest.raises(rblstore.RblError):
                    repo.status("out")
