"""Random histories against the plainest model of them: sets of ancestors in a dictionary."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from rblstore.catalog import graph
from rblstore.catalog.database import Catalog
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, IdentityId

COMPOSITIONS = [CompositionId(Composition.id_of(Composition(IdentityId(str(at) * 64)).encode())) for at in range(3)]


@cache
def template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        Catalog.create(path).close()
        return path.read_bytes()


class Model:
    """A history whose every answer is computed from the definition."""

    def __init__(self, commits: dict[CommitId, Commit]) -> None:
        self.commits = commits
        self.ancestors: dict[CommitId, set[CommitId]] = {}
        self.generations: dict[CommitId, int] = {}
        for id, commit in commits.items():
            self.ancestors[id] = {id}.union(*(self.ancestors[parent] for parent in commit.parents))
            self.generations[id] = 1 + max((self.generations[parent] for parent in commit.parents), default=0)

    def ordered(self, ids: set[CommitId]) -> list[CommitId]:
        def backwards(text: str) -> tuple[int, ...]:
            return tuple(-ord(character) for character in text)

        return sorted(ids, key=lambda at: (-self.generations[at], backwards(self.commits[at].time), at))

    def reached(self, heads: list[CommitId]) -> set[CommitId]:
        return set().union(*(self.ancestors[head] for head in heads))

    def merge_base(self, one: CommitId, other: CommitId) -> CommitId | None:
        both = self.ancestors[one] & self.ancestors[other]
        best = {id for id in both if not any(id in self.ancestors[above] for above in both - {id})}
        return next(iter(self.ordered(best)), None)


@st.composite
def histories(draw: st.DrawFn) -> Model:
    commits: dict[CommitId, Commit] = {}
    for at in range(draw(st.integers(1, 25))):
        earlier = list(commits)
        # Mostly the latest ones, so that histories become deep as well as wide.
        near = earlier[-draw(st.sampled_from([1, 3, 25])) :]
        parents = draw(st.lists(st.sampled_from(near), unique=True, max_size=3)) if near else []
        commit = Commit(
            draw(st.sampled_from(COMPOSITIONS)),
            tuple(parents),
            "Ada",
            f"2024-01-01T00:00:0{draw(st.integers(0, 3))}Z",
            f"commit {at}",
        )
        commits[CommitId(hashlib.sha256(commit.encode()).hexdigest())] = commit
    return Model(commits)


@given(histories(), st.randoms(use_true_random=False), st.data())
def test_the_catalog_answers_as_the_model_does(model: Model, chance, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    ids = list(model.commits)
    shuffled = list(model.commits.items())
    chance.shuffle(shuffled)
    heads = data.draw(st.lists(st.sampled_from(ids), max_size=4), label="heads")
    limit = data.draw(st.none() | st.integers(0, 30), label="limit")
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), max_size=10), label="pairs")
    # Windows smaller than these histories, so that walks cross from one into the next.
    window = patch.object(graph, "_FIRST_WINDOW", data.draw(st.sampled_from([1, 4, 64]), label="window"))
    with tempfile.TemporaryDirectory() as folder, window:
        path = Path(folder) / "catalog.db"
        path.write_bytes(template())
        with Catalog.open(path) as catalog:
            with catalog.write() as writer:
                writer.add_records(shuffled)
            with catalog.read() as reader:
                rows = list(reader.commits(heads, limit))
                assert [row.id for row in rows] == model.ordered(model.reached(heads))[:limit]
                for row in rows:
                    commit = model.commits[row.id]
                    assert (row.parents, row.generation) == (commit.parents, model.generations[row.id])
                    assert (row.composition, row.message, row.time) == (commit.composition, commit.message, commit.time)
                for one, other in pairs:
                    assert reader.is_ancestor(other, one) == (other in model.ancestors[one])
                    assert reader.merge_base(one, other) == model.merge_base(one, other)
                for composition in COMPOSITIONS:
                    same = {id for id, commit in model.commits.items() if commit.composition == composition}
                    for within in (None, ids[-1]):
                        inside = same if within is None else same & model.ancestors[within]
                        found = reader.commits_with_composition(composition, within)
                        assert [row.id for row in found] == model.ordered(inside)
