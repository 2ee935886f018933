"""Tombstones: what was removed on purpose goes, its record stays, and whatever needs it says why it is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gc_stories import age, base, check, difference, opened, packs
from tiny_checkpoints import digests, values, write_adapter, write_base

import rblstore
from rblstore.cli.render.forget import forget_lines
from rblstore.cli.render.show import show_lines
from rblstore.errors import NotFoundError, NothingChangedError, UsageError
from rblstore.forgotten import ForgottenError, contents_named_by
from rblstore.objects.ids import ContentId, RecordId
from rblstore.storage.durable import WriteError

WHY = "asked for by the data's owner"


def slots(repo: Any, revision: str = "HEAD") -> dict[str, RecordId]:
    return {one.name or "": one.behavior for one in repo.show(revision).behaviors}


def story(tmp_path: Path) -> Any:
    """base <- polite <- brief <- without polite (HEAD)."""
    repo = opened(tmp_path / "store")
    base(repo, tmp_path)
    for seed, (name, part) in enumerate((("polite", "q"), ("brief", "v")), start=1):  # nothing of one is in the other
        repo.commit(name, behaviors={name: write_adapter(tmp_path / name, seed=seed, parts=[part])})
    repo.commit("without", remove=["polite"])
    return repo


def gone(repo: Any) -> None:
    """What is to go goes for good."""
    for _ in range(2):
        repo.gc(apply=True)


def stored(repo: Any, contents: frozenset[str]) -> set[str]:
    return {one for one in contents if repo._store.has(ContentId(one))}


def on_disk(repo: Any) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((repo.path / ".rbl").rglob("*.pack")))


def refused(repo: Any, tmp_path: Path, revision: str) -> None:
    for needs in (
        lambda: repo.checkout(revision, tmp_path / "refused"),
        lambda: repo.load(revision),
        lambda: repo.checkout(revision, tmp_path / "refused", form="merged"),
        lambda: repo.checkout(revision, tmp_path / "refused", tensors="model.norm.weight"),
        lambda: repo.tensor(revision, "model.norm.weight"),
    ):
        with pytest.raises(ForgottenError) as caught:
            needs()
        assert "polite" in caught.value.message
        assert all(word in caught.value.message for word in ("removed on purpose by Ada", WHY))
        assert caught.value.code == "forgotten"
        assert "rbl revert --behavior polite --no-verify" in (caught.value.hint or "")
        assert not (tmp_path / "refused").exists()


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        before = packs(repo)
        plan = repo.forget("polite", reason=WHY, revision="HEAD^")
        assert (plan.applied, plan.tombstone, plan.role, packs(repo)) == (False, None, "behavior", before)
        assert (plan.commits, [one.subject for one in plan.named], plan.branches) == (2, ["brief", "polite"], ())
        assert plan.contents > 1
        assert plan.bytes > 0
        text = list(forget_lines(plan.as_json()))
        assert text[0].startswith("would be forgotten: behavior polite")
        assert text[-1] == "nothing was changed; to do it, for good: add --apply"
        repo.checkout("HEAD^", tmp_path / "out")


def test_its_content_goes_and_history_still_resolves(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        polite = slots(repo, "HEAD^")["polite"]
        contents = contents_named_by(repo._store, polite)
        result = repo.forget("polite", reason=WHY, revision="HEAD^", author="Ada", apply=True)
        assert result.tombstone is not None
        refused(repo, tmp_path, "HEAD^")  # whether gc came or not
        assert stored(repo, contents) == contents
        plan = repo.gc()
        assert (plan.forgotten, plan.forgotten_staying) == (result.contents, 0)
        assert {one.reason for one in plan.packs} <= {"unreachable", "forgotten"}
        gone(repo)
        assert stored(repo, contents) == set()
        refused(repo, tmp_path, "HEAD^")
        found = repo.fsck(full=True)
        assert (found.ok, found.forgotten) == (True, result.contents)
        check(repo)  # reindex keeps the tombstone
        refused(repo, tmp_path, "HEAD^")
        assert [one.message for one in repo.log()] == ["without", "brief", "polite", "base"]
        shown = next(one for one in repo.show("HEAD^").behaviors if one.name == "polite")
        assert (shown.forgotten.reason, shown.forgotten.author) == (WHY, "Ada")
        assert any(WHY in line for line in show_lines(repo.show("HEAD^").as_json()))
        assert [one.name for one in repo.diff("HEAD^", "HEAD").slots] == ["polite"]
        assert [one.name for one in repo.audit("HEAD^").components if one.role == "behavior"] == ["polite", "brief"]
        assert repo.du("HEAD^").commit is not None
        assert next(one for one in repo.report("HEAD^").parts if one.name == "polite").ranks == ()
        assert not repo.repack().dry_run
        repo.checkout("HEAD", tmp_path / "out")
        assert repo.fsck(full=True).ok


def test_no_byte_of_it_is_left(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as repo:
        (repo.path / ".rbl" / "config.toml").write_text('[gc]\ngrace = 0\n[storage]\ncompression = "none"\n')
    with rblstore.open(tmp_path / "store") as repo:
        folder = write_adapter(tmp_path / "polite")
        secret = (folder / "adapter_model.safetensors").read_bytes()[-32:]
        base(repo, tmp_path)
        repo.commit("polite", behaviors={"polite": folder})
        assert secret in on_disk(repo)
        repo.forget("polite", reason=WHY, apply=True)
        repo.gc(apply=True)
        assert secret in on_disk(repo), "it waits in the trash"
        repo.gc(apply=True)
        assert secret not in on_disk(repo)


def test_what_something_else_needs_stays(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        twin = write_adapter(tmp_path / "twin", seed=1, lora_alpha=9)  # the same weights, under another config
        repo.commit("twin", behaviors={"twin": twin})
        polite, kept = slots(repo, "HEAD~2")["polite"], slots(repo)["twin"]
        both = contents_named_by(repo._store, polite) & contents_named_by(repo._store, kept)
        result = repo.forget(str(polite), reason=WHY, apply=True)
        assert (result.shared, result.contents) == (len(both), 1)
        gone(repo)
        assert stored(repo, contents_named_by(repo._store, kept)) == contents_named_by(repo._store, kept)
        repo.checkout("HEAD", tmp_path / "out")
        assert digests(tmp_path / "out" / "behaviors" / "twin") == digests(twin)
        check(repo)
        repo.forget("twin", reason=WHY, apply=True)
        gone(repo)
        assert stored(repo, both) == set(), "nothing living needs it any more"
        check(repo)


def test_a_difference_from_it_is_encoded_anew_before_it_goes(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as repo:
        under, over = difference(repo, tmp_path)
        found = repo._store.contents.stored([over])[0]
        assert under in found.bases
        result = repo.forget("identity", reason=WHY, revision="HEAD^", apply=True)
        assert (result.role, result.commits) == ("identity", 1)
        with pytest.raises(ForgottenError, match=r"^the identity \([0-9a-f]{12}\) was removed") as caught:
            repo.checkout("HEAD^", tmp_path / "refused")
        assert "revert" not in (caught.value.hint or "")
        gone(repo)
        assert not repo._store.has(under)
        assert repo._store.contents.stored([over])[0].bases == frozenset()
        check(repo)
        repo.checkout("HEAD", tmp_path / "out")
        assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "over")["model.safetensors"]


def test_a_pack_with_more_in_it_is_written_anew(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        repo.repack()
        polite = contents_named_by(repo._store, slots(repo, "HEAD^")["polite"])
        repo.forget("polite", reason=WHY, revision="HEAD^", apply=True)
        plan = repo.gc()
        assert [(one.reason, one.kind) for one in plan.packs] == [("forgotten", "C")]
        gone(repo)
        assert stored(repo, polite) == set()
        check(repo)
        repo.checkout("HEAD", tmp_path / "out")


def test_a_young_pack_waits(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        result = repo.forget("polite", reason=WHY, revision="HEAD^", apply=True)
        found = repo.gc(apply=True, grace_days=14)
        assert (found.forgotten, found.forgotten_staying, found.packs) == (0, result.contents, ())
        age(repo, 15)
        assert repo.gc(apply=True, grace_days=14).forgotten == result.contents
        assert repo.fsck(full=True).ok


def test_the_trash_does_not_bring_it_back(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        polite = contents_named_by(repo._store, slots(repo, "HEAD^")["polite"])
        repo.forget("polite", reason=WHY, revision="HEAD^", apply=True)
        repo.gc(apply=True)
        assert stored(repo, polite) == set()
        restored = repo.restore_trash()
        assert restored.stayed
        assert {why for _, why in restored.stayed} == {"it holds what was removed on purpose"}
        assert stored(repo, polite) == set()
        check(repo)


def test_history_comes_back_from_the_trash_without_it(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as repo:
        base(repo, tmp_path)
        repo.switch("side", create=True)
        made = repo.commit("polite", behaviors={"polite": write_adapter(tmp_path / "polite")})
        polite = contents_named_by(repo._store, slots(repo)["polite"])
        repo.forget("polite", reason=WHY, author="Ada", apply=True)
        repo.switch("main")
        repo.delete_branch("side")
        repo.gc(apply=True)
        with pytest.raises(NotFoundError):
            repo.show(str(made.commit))
        repo.restore_trash()
        assert repo.show(str(made.commit)).behaviors[0].forgotten.author == "Ada"
        assert stored(repo, polite) == set()
        refused(repo, tmp_path, str(made.commit))
        assert repo.fsck(full=True).ok


def test_it_cannot_be_committed_or_forgotten_again(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        polite = slots(repo, "HEAD^")["polite"]
        repo.forget(str(polite), reason=WHY, author="Ada", apply=True)
        for _ in range(2):
            head = repo.head
            with pytest.raises(ForgottenError, match=WHY):
                repo.commit("again", behaviors={"polite": tmp_path / "polite"})
            with pytest.raises(NothingChangedError, match="removed already, by Ada"):
                repo.forget(str(polite), reason=WHY, apply=True)
            assert repo.head == head
            gone(repo)
        assert repo.fsck(full=True).ok


def test_a_branch_that_has_it_goes_on(tmp_path: Path) -> None:
    """It can be taken out, and everything else about the branch still works."""
    with story(tmp_path) as repo:
        repo.undo()
        result = repo.forget("polite", reason=WHY, author="Ada", apply=True)
        assert result.branches == ("main",)
        gone(repo)
        refused(repo, tmp_path, "HEAD")
        repo.commit("more", behaviors={"more": write_adapter(tmp_path / "more", seed=5)})
        repo.revert(behavior="brief", verify=False)  # what stays is not read
        repo.revert(behavior="polite", verify=False)
        repo.checkout("HEAD", tmp_path / "out")
        with pytest.raises(ForgottenError, match=WHY):
            repo.revert("HEAD", verify=False)
        check(repo)


def test_an_overlay(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as repo:
        base(repo, tmp_path)
        changed = write_base(tmp_path / "tuned", lm_head__weight=values(8, 8, seed=77))
        repo.commit("tuned", behaviors={"tuned": changed})
        tuned = contents_named_by(repo._store, slots(repo)["tuned"])
        result = repo.forget("tuned", reason=WHY, apply=True)
        assert result.shared == len(tuned) - result.contents > 0, "what the identity has stays"
        gone(repo)
        check(repo)
        assert len(stored(repo, tuned)) == result.shared
        with pytest.raises(ForgottenError):
            repo.tensor("HEAD", "lm_head.weight")
        assert repo.diff("HEAD^", "HEAD").tensors
        repo.revert(behavior="tuned", verify=False)
        repo.checkout("HEAD", tmp_path / "out")


def test_an_identity(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        repo.forget("identity", reason=WHY, author="Ada", apply=True)
        gone(repo)
        with pytest.raises(ForgottenError, match="the identity"):
            repo.checkout("HEAD", tmp_path / "out")
        shown = repo.show("HEAD").identity
        assert (shown.forgotten.author, shown.tensors > 0) == ("Ada", True)
        assert repo.diff("HEAD~2", "HEAD").slots
        assert repo.audit().components[0].role == "identity"
        assert repo.repack(compression="max").compression == "max"
        assert repo.fsck(full=True).ok
        check(repo)


def test_repair_leaves_it_alone(tmp_path: Path) -> None:
    """Also where the bytes could be had, and something else is damaged."""
    with story(tmp_path) as repo:
        polite = contents_named_by(repo._store, slots(repo, "HEAD^")["polite"])
        brief = contents_named_by(repo._store, slots(repo)["brief"])
        repo.forget("polite", reason=WHY, revision="HEAD^", apply=True)
        gone(repo)
        with repo._store.catalog.read() as reader:
            pack = reader.locations(map(ContentId, brief)).popitem()[1].pack
        path = repo.path / ".rbl" / "packs" / pack[:2] / f"{pack}.pack"
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
        found = repo.fsck(full=True)
        assert (found.ok, found.forgotten) == (False, len(polite - brief))
    result = rblstore.repair(tmp_path / "store", sources=[tmp_path / "polite", tmp_path / "brief"], apply=True)
    assert (result.whole, result.lost) == (True, ())
    with rblstore.open(tmp_path / "store") as repo:
        assert stored(repo, polite - brief) == set()
        assert repo.fsck(full=True).ok


def test_what_is_lost_besides_is_damage(tmp_path: Path) -> None:
    """A tombstone explains what it covers, and nothing else."""
    with story(tmp_path) as repo:
        repo.forget("polite", reason=WHY, revision="HEAD^", apply=True)
        gone(repo)
        brief = contents_named_by(repo._store, slots(repo)["brief"])
        with repo._store.catalog.read() as reader:
            pack = reader.locations(map(ContentId, brief)).popitem()[1].pack
        (repo.path / ".rbl" / "packs" / pack[:2] / f"{pack}.pack").unlink()
        assert not repo.fsck().ok
    with opened(tmp_path / "store") as repo, pytest.raises(rblstore.CorruptError):
        repo.checkout("HEAD", tmp_path / "out")


def test_what_is_shared_is_damage_where_it_is_lost(tmp_path: Path) -> None:
    """And comes back, for what was not forgotten."""
    with story(tmp_path) as repo:
        twin = write_adapter(tmp_path / "twin", seed=1, lora_alpha=9)
        repo.commit("twin", behaviors={"twin": twin})
        polite = slots(repo, "HEAD~2")["polite"]
        repo.forget(str(polite), reason=WHY, apply=True)
        gone(repo)
        both = contents_named_by(repo._store, polite) & contents_named_by(repo._store, slots(repo)["twin"])
        with repo._store.catalog.read() as reader:
            held = {at.pack for at in reader.locations(map(ContentId, both)).values()}
        for pack in held:
            (repo.path / ".rbl" / "packs" / pack[:2] / f"{pack}.pack").unlink()
    rblstore.reindex(tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        assert {one.object for one in repo.fsck().damages} >= both
    result = rblstore.repair(tmp_path / "store", sources=[twin, tmp_path / "base-0", tmp_path / "brief"], apply=True)
    assert result.whole
    with rblstore.open(tmp_path / "store") as repo:
        assert stored(repo, contents_named_by(repo._store, polite)) == both
        repo.checkout("HEAD", tmp_path / "out")


def test_a_crash_leaves_before_or_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with story(tmp_path) as repo:
        before = packs(repo)
        monkeypatch.setattr(
            "rblstore.transaction.Transaction._finish", lambda *_: (_ for _ in ()).throw(WriteError("full"))
        )
        with pytest.raises(WriteError):
            repo.forget("polite", reason=WHY, revision="HEAD^", apply=True)
        monkeypatch.undo()
        assert packs(repo) == before
        repo.checkout("HEAD^", tmp_path / "out")
        check(repo)


def test_bad_requests(tmp_path: Path) -> None:
    with story(tmp_path) as repo:
        with pytest.raises(UsageError, match="say why"):
            repo.forget("brief", reason=" \n")
        with pytest.raises(NotFoundError):
            repo.forget("polite", reason=WHY)
        with pytest.raises(NotFoundError):
            repo.forget("0123456789", reason=WHY)
