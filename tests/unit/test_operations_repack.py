"""What a repack does to packs, and that it does nothing to anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import Tensor, digests, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.errors import CorruptError, LockedError, RblError, UsageError
from rblstore.objects.ids import ContentId
from rblstore.operations import repack_plan
from rblstore.operations.repack import RepackResult
from rblstore.storage.codecs import DELTA, RAW
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.locks import exclusive, shared

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
ROWS, COLUMNS = 64, 64


def weights(seed: int, rows: int = ROWS) -> np.ndarray[Any, Any]:
    """Elements of two bytes like those of a trained bf16 tensor."""
    drawn = np.random.default_rng(seed).normal(0, 0.02, (rows, COLUMNS)).astype("<f4")
    return (drawn.view("<u4") >> 16).astype("<u2")


def tuned(values: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """The same, some of them one step of their last bit up."""
    return values + (np.random.default_rng(seed).integers(0, 3, values.shape) == 0).astype("<u2")


def model(folder: Path, values: np.ndarray[Any, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}' + " " * 200)
    tensor = Tensor("BF16", values.shape, values.tobytes())
    write_safetensors(folder / "model.safetensors", {WEIGHT: tensor})
    return folder


def content(values: np.ndarray[Any, Any]) -> ContentId:
    return ContentId(hashlib.sha256(values.tobytes()).hexdigest())


def found_anew(repo: Any, values: np.ndarray[Any, Any]) -> Any:
    repo._store.contents.look_anew()
    return repo._store.contents.find(content(values))


def base_of(repo: Any, values: np.ndarray[Any, Any]) -> set[str]:
    return set(found_anew(repo, values).bases)


def codecs_of(repo: Any, values: np.ndarray[Any, Any]) -> set[int]:
    return {frame.codec for frame in found_anew(repo, values).frames}


def packs(repo: Any, kinds: str = "CR") -> set[str]:
    return {pack for pack in repo._store.packs() if repo._store.pack(pack).kind() in kinds}


def told(repo: Any) -> Any:
    """Everything that history says."""
    log = repo.log(all=True)
    return log, repo.branches(), repo.tags(), repo.operations(), [repo.show(entry.commit) for entry in log]


def check(repo: Any, **options: Any) -> RepackResult:
    """Repacks, and checks what holds of every repack."""
    before, names = told(repo), packs(repo)
    dry = repo.repack(dry_run=True, **options)
    assert (told(repo), packs(repo)) == (before, names)
    result: RepackResult = repo.repack(**options)
    assert told(repo) == before
    assert repo.fsck(full=True).damages == ()
    assert result.bytes_after == sum(repo._store.pack_size(pack) for pack in packs(repo))
    assert result.packs_after == len(packs(repo))
    assert (dry.dry_run, dry.bytes_after, dry.rewrites) == (True, None, result.rewrites)
    for field in ("compression", "changed", "packs_before", "packs_after", "bytes_before", "reencoded", "deltas"):
        assert getattr(dry, field) == getattr(result, field), field
    names = packs(repo)
    again = repo.repack(**options)
    assert (again.changed, again.rewrites, packs(repo)) == (False, (), names)
    return result


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with rblstore.init(tmp_path / "store") as opened:
        yield opened


def test_an_overlay_becomes_a_difference_from_what_it_replaces(repo: Any, tmp_path: Path) -> None:
    base, fine = weights(1), tuned(weights(1), 2)
    repo.commit("base", identity=model(tmp_path / "base", base), compression="none")
    repo.commit("ft", behaviors={"ft": model(tmp_path / "ft", fine)}, compression="none")
    assert codecs_of(repo, base) == codecs_of(repo, fine) == {RAW}
    result = check(repo)
    assert (result.deltas, result.changed) == (1, True)
    assert result.bytes_after is not None
    assert result.bytes_after < result.bytes_before * 0.7
    assert (base_of(repo, base), base_of(repo, fine)) == (set(), {content(base)})
    assert {reason for rewrite in result.rewrites for reason in rewrite.reasons} >= {"compression", "delta", "small"}
    repo.checkout("HEAD", tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "ft")["model.safetensors"]
    assert check(repo, compression="none").reencoded >= 2
    assert codecs_of(repo, base) == codecs_of(repo, fine) == {RAW}
    assert base_of(repo, fine) == set()


def test_stacked_overlays_are_differences_from_one_base(repo: Any, tmp_path: Path) -> None:
    base = weights(1)
    one = tuned(base, 2)
    two = tuned(one, 3)
    repo.commit("base", identity=model(tmp_path / "base", base), compression="none")
    repo.commit("sft", behaviors={"sft": model(tmp_path / "one", one)}, compression="none")
    repo.commit("dpo", behaviors={"dpo": model(tmp_path / "two", two)}, compression="none")
    assert check(repo).deltas == 2
    assert base_of(repo, base) == set()
    assert base_of(repo, one) == base_of(repo, two) == {content(base)}


def test_an_identity_becomes_a_difference_from_the_one_that_it_replaced(repo: Any, tmp_path: Path) -> None:
    first, second = weights(1), tuned(weights(1), 2)
    repo.commit("one", identity=model(tmp_path / "one", first), compression="none")
    repo.commit("two", identity=model(tmp_path / "two", second), compression="none")
    repo.commit("one again", identity=tmp_path / "one")
    check(repo)
    assert (base_of(repo, first), base_of(repo, second)) == (set(), {content(first)})


def orphan(repo: Any, name: str, folder: Path, compression: str = "none") -> None:
    repo.switch(name, orphan=True)
    repo.commit(name, identity=folder, compression=compression)


def test_among_identities_that_nothing_connects_the_first_is_the_base(repo: Any, tmp_path: Path) -> None:
    base, fine, other = weights(1), tuned(weights(1), 2), weights(9)
    repo.commit("ft", identity=model(tmp_path / "ft", fine), compression="none")
    orphan(repo, "base", model(tmp_path / "base", base))
    orphan(repo, "unrelated", model(tmp_path / "unrelated", other))
    assert check(repo).deltas == 1
    assert (base_of(repo, fine), base_of(repo, base), base_of(repo, other)) == (set(), {content(fine)}, set())


def test_what_something_stands_on_is_the_base_although_it_came_later(repo: Any, tmp_path: Path) -> None:
    base, fine, more = weights(1), tuned(weights(1), 2), tuned(weights(1), 3)
    repo.commit("ft", identity=model(tmp_path / "ft", fine), compression="none")
    orphan(repo, "base", model(tmp_path / "base", base), "fast")
    repo.commit("more", behaviors={"more": model(tmp_path / "more", more)}, compression="fast")
    assert base_of(repo, more) == {content(base)}
    check(repo)
    assert base_of(repo, base) == set()
    assert base_of(repo, fine) == base_of(repo, more) == {content(base)}


def test_each_family_has_its_base(repo: Any, tmp_path: Path) -> None:
    first, second = weights(1), weights(2)
    members = {"a": first, "b": second, "b-tuned": tuned(second, 5), "a-tuned": tuned(first, 6)}
    for name, values in members.items():
        orphan(repo, name, model(tmp_path / name, values))
    assert check(repo).deltas == 2
    assert base_of(repo, members["a-tuned"]) == {content(first)}
    assert base_of(repo, members["b-tuned"]) == {content(second)}


def test_a_commit_knows_what_another_process_repacked(repo: Any, tmp_path: Path) -> None:
    """What it found without a base before is a difference by now, and can be nobody's base."""
    fine, base = weights(1), tuned(weights(1), 2)
    repo.commit("ft", identity=model(tmp_path / "ft", fine), compression="none")
    orphan(repo, "base", model(tmp_path / "base", base))
    repo.create_branch("other")
    repo.commit("two", identity=model(tmp_path / "two", tuned(base, 3)), compression="none")
    assert repo._store.contents.find(content(base)).bases == set()
    with rblstore.open(tmp_path / "store") as process:
        process.repack(compression="fast")
        assert base_of(process, base) == {content(fine)}
    repo.commit("three", identity=model(tmp_path / "three", tuned(base, 4)), branch="other", compression="fast")
    assert repo.fsck(full=True).damages == ()
    assert base_of(repo, tuned(base, 4)) == {content(fine)}


def test_a_base_with_fewer_rows(repo: Any, tmp_path: Path) -> None:
    base = weights(1)
    larger = np.concatenate([tuned(base, 2), weights(5, rows=8)])
    repo.commit("base", identity=model(tmp_path / "base", base), compression="none")
    repo.commit("larger", behaviors={"larger": model(tmp_path / "larger", larger)}, compression="none")
    assert check(repo).deltas == 1


def test_what_max_encoded_fast_leaves_alone(repo: Any, tmp_path: Path) -> None:
    repo.commit("base", identity=model(tmp_path / "base", weights(1)), compression="max")
    names = packs(repo)
    assert not check(repo, compression="fast").changed
    assert packs(repo) == names


def test_the_settings_say_what_is_not_said(repo: Any, tmp_path: Path) -> None:
    repo.commit("base", identity=model(tmp_path / "base", weights(1)))
    (tmp_path / "store" / ".rbl" / "config.toml").write_text('[storage]\ncompression = "none"\n')
    with rblstore.open(tmp_path / "store") as opened:
        result = opened.repack()
        assert (result.compression, result.reencoded) == ("none", 2)
        assert codecs_of(opened, weights(1)) == {RAW}


def test_small_packs_become_one_and_large_ones_stay(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repack_plan, "SMALL_BYTES", 8000)
    repo.commit("base", identity=model(tmp_path / "base", weights(1)))
    large = packs(repo)
    repo.commit("two", identity=write_base(tmp_path / "two"))
    for seed in range(6):
        repo.commit(f"a{seed}", behaviors={"a": write_adapter(tmp_path / f"a{seed}", seed=seed)})
    result = check(repo)
    assert result.packs_before == 16
    assert result.packs_after == 4  # of what was merged, one pack of contents, and two of records
    assert (result.reencoded, result.deltas, result.duplicates) == (0, 0, 0)
    assert {rewrite.reasons for rewrite in result.rewrites} == {("small",)}
    kept = [pack for pack in large & packs(repo) if repo._store.pack(pack).kind() == "C"]
    assert len(kept) == 1


def test_the_same_repositories_give_the_same_packs(tmp_path: Path) -> None:
    base, fine = model(tmp_path / "base", weights(1)), model(tmp_path / "ft", tuned(weights(1), 2))
    names = []
    for number, threads in enumerate((1, 4)):
        with rblstore.init(tmp_path / f"store{number}") as opened:
            config = tmp_path / f"store{number}" / ".rbl" / "config.toml"
            config.write_text(f"[storage]\nthreads = {threads}\n")
        with rblstore.open(tmp_path / f"store{number}") as opened:
            opened.commit("base", identity=base, compression="none")
            opened.commit("ft", behaviors={"ft": fine}, compression="none")
            opened.repack()
            names.append({pack for pack in packs(opened) if opened._store.pack(pack).kind() == "C"})
    assert names[0] == names[1]
    assert len(names[0]) == 1


def test_second_copies_are_dropped_and_the_last_one_never(repo: Any, tmp_path: Path) -> None:
    """What a killed repack leaves, and reindex lists: old packs beside new ones."""
    base, fine = weights(1), tuned(weights(1), 2)
    repo.commit("base", identity=model(tmp_path / "base", base), compression="none")
    repo.commit("ft", behaviors={"ft": model(tmp_path / "ft", fine)}, compression="none")
    store = tmp_path / "store"
    old = {path: path.read_bytes() for path in store.rglob("*.pack")}
    repo.repack()
    for path, data in old.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert repo.fsck(full=True).damages == ()
    rblstore.reindex(store)
    with rblstore.open(store) as opened:
        assert opened.fsck(full=True).damages == ()
        result = check(opened)
        assert result.duplicates > 0
        assert (result.packs_before, result.packs_after) == (6, 2)
        assert base_of(opened, fine) == {content(base)}


def test_a_base_that_is_a_difference_elsewhere_is_read_and_kept_where_it_is_none(repo: Any, tmp_path: Path) -> None:
    """Each of two tensors is a difference from the other, in packs of two times; reindex brings both to light."""
    base, fine = weights(1), tuned(weights(1), 2)
    repo.commit("ft", identity=model(tmp_path / "ft", fine), compression="none")
    orphan(repo, "base", model(tmp_path / "base", base))
    repo.repack()
    assert base_of(repo, base) == {content(fine)}
    store = tmp_path / "store"
    old = {path: path.read_bytes() for path in store.rglob("*.pack")}
    repo.repack(compression="none")
    more = model(tmp_path / "more", tuned(base, 3))
    repo.commit("more", behaviors={"more": more}, compression="none")
    repo.repack()
    assert base_of(repo, fine) == {content(base)}
    for path, data in old.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    rblstore.reindex(store)
    with rblstore.open(store) as opened:
        assert opened.fsck(full=True).damages == ()
        check(opened)
        opened.checkout("main", tmp_path / "out")
        assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "ft")["model.safetensors"]


def test_contents_that_nothing_refers_to_are_kept(repo: Any, tmp_path: Path) -> None:
    repo.commit("base", identity=model(tmp_path / "base", weights(1)), compression="none")
    store = repo._store
    with store.transaction("x") as transaction:
        added = transaction.add_content([b"nobody's"]).content
    check(repo)
    assert b"".join(store.content(added)) == b"nobody's"


def test_an_empty_repository(repo: Any) -> None:
    assert not check(repo).changed


def test_what_is_no_policy(repo: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        repo.repack(compression="best")
    with pytest.raises(UsageError) as caught:
        repo.commit("base", identity=write_base(tmp_path / "base"), compression="best")
    assert caught.value.object == "best"
    assert repo.head is None


@pytest.mark.usefixtures("impatient")
def test_nobody_writes_meanwhile(repo: Any, tmp_path: Path) -> None:
    repo.commit("base", identity=model(tmp_path / "base", weights(1)), compression="none")
    lock = tmp_path / "store" / ".rbl" / "lock"
    with shared(lock):
        with pytest.raises(LockedError):
            repo.repack()
        assert repo.repack(dry_run=True).changed
    with exclusive(lock), pytest.raises(LockedError):
        repo.commit("ft", behaviors={"ft": model(tmp_path / "ft", tuned(weights(1), 2))})
    heard = []

    def try_to_write(event: Any) -> None:
        with rblstore.open(tmp_path / "store") as other:
            try:
                other.create_tag("meanwhile")
            except RblError as error:
                heard.append(error.code)

    repo.repack(progress=try_to_write)
    assert set(heard) == {"locked"}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["fast", "none"])
def test_damage_is_an_error_and_changes_nothing(repo: Any, tmp_path: Path, compression: str) -> None:
    repo.commit("base", identity=model(tmp_path / "base", weights(1)), compression="max")
    repo.commit("two", identity=write_base(tmp_path / "two"))
    (path,) = [
        path
        for path in (tmp_path / "store").rglob("*.pack")
        if path.read_bytes()[8:9] == b"C" and path.stat().st_size > 5000
    ]
    flip(path, 3000)
    names = packs(repo)
    with pytest.raises(CorruptError):
        repo.repack(compression=compression)
    assert packs(repo) == names
    assert list((tmp_path / "store" / ".rbl" / "tmp").iterdir()) == []


def test_the_whole_copy_is_not_dropped_for_a_damaged_one(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repack_plan, "SMALL_BYTES", 0)  # so that the damaged one stays where it is
    repo.commit("base", identity=model(tmp_path / "base", weights(1)), compression="none")
    store = repo._store
    good = packs(repo)
    repo.repack()  # smaller, and therefore the copy that would be kept
    (kept,) = [pack for pack in packs(repo) - good if store.pack(pack).kind() == "C"]
    path = tmp_path / "store" / ".rbl" / "packs" / kept[:2] / f"{kept}.pack"
    with store.transaction("x") as transaction:  # another writer stored it again: each asked before the other was done
        transaction._contents._pipeline._is_stored = lambda _: False
        transaction.add_content([weights(1).tobytes()])
    flip(path, 3000)
    names = packs(repo)
    with pytest.raises(CorruptError):
        repo.repack()
    assert packs(repo) == names


def big_model(folder: Path, seed: int, near: np.ndarray[Any, Any] | None = None) -> tuple[Path, np.ndarray[Any, Any]]:
    """A model of one tensor of several frames, few of whose values differ."""
    values = near.copy() if near is not None else np.zeros((10_000_000 // COLUMNS, COLUMNS), "<u2")
    values[:: 50 + seed] += 1 + seed
    return model(folder, values), values


def other_thread(work: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


@pytest.fixture
def big(repo: Any, tmp_path: Path) -> Any:
    """A base and its fine-tune, of several frames each, and what repacks them in another thread."""
    base, values = big_model(tmp_path / "base", 0)
    fine, fine_values = big_model(tmp_path / "ft", 1, values)
    repo.commit("base", identity=base, compression="none")
    repo.commit("ft", behaviors={"ft": fine}, compression="none")

    def repack(compression: str) -> None:
        def work() -> None:
            with rblstore.open(tmp_path / "store") as other:
                assert other.repack(compression=compression).changed

        other_thread(work)

    return repack, values, fine_values


def test_a_reader_does_not_notice(repo: Any, big: Any) -> None:
    """Every other frame from a pack that is gone by then; there and back again."""
    repack, base, fine = big
    for policy in ("fast", "none", "max", "none"):
        before = packs(repo, "C")
        contents = repo._store.contents.stored([content(base), content(fine)])
        got: dict[str, bytes] = {}
        pieces = read_contents(map(Wanted, contents), workers=0)
        for number, piece in enumerate(pieces):
            one = piece.wanted.content.content
            got[one] = got.get(one, b"") + bytes(piece.data)
            if number == 0:
                repack(policy)
                assert not before & packs(repo)
        assert got == {content(base): base.tobytes(), content(fine): fine.tobytes()}


def test_a_reader_is_overtaken_twice(repo: Any, big: Any) -> None:
    repack, _, fine = big
    (found,) = repo._store.contents.stored([content(fine)])
    got, policies = b"", ["fast", "none", "fast"]
    for piece in read_contents([Wanted(found)], workers=0):
        got += bytes(piece.data)
        if policies:
            repack(policies.pop(0))
    assert policies == []
    assert got == fine.tobytes()
    assert codecs_of(repo, fine) == {DELTA}


@pytest.mark.parametrize("first", ["none", "fast"])
def test_a_checkout_does_not_notice(repo: Any, big: Any, tmp_path: Path, first: str) -> None:
    repack, _, fine = big
    policies = {"none": ["fast", "none"], "fast": ["none", "fast"]}[first]
    if first == "fast":
        repack("fast")
        assert codecs_of(repo, fine) == {DELTA}
    before = packs(repo)

    def overtake(event: Any) -> None:
        if policies:
            repack(policies.pop(0))

    repo.checkout("HEAD", tmp_path / "out", progress=overtake)
    assert policies == [] or not before & packs(repo)
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "ft")["model.safetensors"]


def test_looking_at_all_packs_begins_again(repo: Any, big: Any) -> None:
    repack, _, _ = big
    seen = 0

    def overtake(event: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            repack("fast")

    assert repo.fsck(full=True, progress=overtake).damages == ()
    assert seen > len(packs(repo)) + 1
