"""What the public repository measures of models in many states: the studies of arXiv 2603.02934, and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.operations.progress import Progress
    from rblstore.operations.report_facts import ReportResult
    from rblstore.operations.study_list import StudyInfo
    from rblstore.operations.study_mechanisms import MechanismOptions
    from rblstore.operations.study_run import StudyResult


class Studies:
    """What :class:`rblstore.Repository` measures of models in many states.

    Every study reads compositions from the repository, keeps one model in memory, and is recorded as a whole or not at
    all; one that was interrupted goes on where it was. See ``docs/studies.md``.
    """

    _store: Store

    if TYPE_CHECKING:

        def author(self, author: str | None = None) -> str: ...

    def studies(self, revision: str | None = None) -> list[StudyInfo]:
        """The studies of a commit, or all of them, in the order in which they were recorded.

        Args:
            revision: The commit; None for all.
        """
        from rblstore.operations.study_list import studies
        from rblstore.revisions import resolve

        return studies(self._store, None if revision is None else resolve(self._store, revision).commit)

    def study(self, study_id: str) -> StudyResult:
        """A recorded study.

        Args:
            study_id: Its id, or a unique prefix of it.

        Raises:
            NotFoundError: There is none.
        """
        from rblstore.operations.study_list import study

        return study(self._store, study_id)

    def study_mechanisms(
        self,
        revision: str = "HEAD",
        behaviors: Sequence[str] | None = None,
        probe: str | None = None,
        *,
        training: str | None = None,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[MechanismOptions],
    ) -> StudyResult:
        """Adapts a commit's identity in several ways, gets it back with and without the store, and measures both.

        Args:
            revision: Which commit.
            behaviors: Of its behaviors, which take part; None for all that stand on the identity alone. Without an
                adapter a LoRA is made on the spot, in memory alone.
            probe: The probe's name; None for the default one.
            training: The probe whose prompts are trained and distilled on; None for the one that is measured.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.
            options: What is done, by name (:class:`rblstore.operations.study_mechanisms.MechanismOptions`): ``alpha``,
                ``steps``, ``learning_rate``, ``layers``, ``mechanisms``, ``resets``, ``seeds``, ``threshold``.

        Raises:
            UsageError: A parameter is out of range.
            ConflictError: A named behavior does not stand on the identity alone, or a probe was not made for it.
            UntrainableModelError: The model cannot be trained this way.
        """
        from rblstore.operations.study_mechanisms import study_mechanisms

        return study_mechanisms(
            self._store,
            revision,
            behaviors,
            probe,
            training=training,
            dtype=dtype,
            author=self.author(author),
            progress=progress,
            **options,
        )

    def study_scale(
        self,
        revisions: Sequence[str],
        probes: Sequence[str] | None = None,
        *,
        training: Sequence[str] | None = None,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[MechanismOptions],
    ) -> StudyResult:
        """Measures for several identities what can be recovered, in percent; the adapter is made on the spot.

        Args:
            revisions: One commit an identity; their behaviors are left out.
            probes: One for all of them, or one each in their order; None for the default one.
            training: Likewise, whose prompts are trained on; None for those that are measured.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.
            options: As for :meth:`study_mechanisms`, without the mechanism ``overlay``.

        Raises:
            UsageError: No revision, two of one identity, another number of probes, or a parameter out of range.
            ConflictError: A probe was not made for an identity.
            UntrainableModelError: A model cannot be trained this way.
        """
        from rblstore.operations.study_scale import study_scale

        return study_scale(
            self._store,
            revisions,
            probes,
            training=training,
            dtype=dtype,
            author=self.author(author),
            progress=progress,
            **options,
        )

    def study_elimination(
        self,
        revision: str = "HEAD",
        behavior: str | None = None,
        epsilons: Sequence[float] | None = None,
        probe: str | None = None,
        *,
        form: str = "adapters",
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Puts growing fractions of a behavior to nothing, the smallest elements first.

        Args:
            revision: Which commit.
            behavior: Which of its behaviors; None for the only one.
            epsilons: Fractions from 0 to 1; None for 0, .001, .01, .05, .2, .4, .6, .8 and 1.
            probe: The probe's name; None for the default one.
            form: ``adapters`` to put an adapter's own tensors to zero, ``merged`` to put what it changes of the weights
                back to what they are without it; for an overlay these are one.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            UsageError: No behavior, several and none named, or an epsilon out of range.
            ConflictError: The behavior is of a kind that is not nothing where it is zero or that cannot be merged, or
                others stand on it.
            InputError: Outputs hold NaN; nothing is recorded.
        """
        from rblstore.operations.study_elimination import study_elimination

        who = self.author(author)
        return study_elimination(
            self._store, revision, behavior, epsilons, probe, form=form, dtype=dtype, author=who, progress=progress
        )

    def study_mutation(
        self,
        revision: str = "HEAD",
        alphas: Sequence[float] | None = None,
        probe: str | None = None,
        *,
        seeds: int = 3,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Adds noise to every weight of a commit's identity; restores it without a snapshot, and from the store.

        Args:
            revision: Which commit; its behaviors are left out.
            alphas: Standard deviations above 0; None for .001, .01 and .05.
            probe: The probe's name; None for the default one.
            seeds: How many, from 0 on.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            UsageError: An alpha or the number of seeds is out of range.
            InputError: Outputs hold NaN; nothing is recorded.
        """
        from rblstore.operations.study_mutation import study_mutation

        who = self.author(author)
        return study_mutation(
            self._store, revision, alphas, probe, seeds=seeds, dtype=dtype, author=who, progress=progress
        )

    def study_svar(
        self,
        revision: str = "HEAD",
        behavior: str | None = None,
        perturbations: Sequence[str] | None = None,
        probe: str | None = None,
        *,
        form: str = "adapters",
        seeds: int = 3,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Perturbs a behavior a little, and measures how far the outputs move: its stability.

        Args:
            revision: Which commit.
            behavior: Which of its behaviors; None for the only one.
            perturbations: ``KIND:AMOUNT`` or ``KIND:AMOUNT@REGION`` each; None for the paper's ``drop:0.25``,
                ``scale:0.9``, ``normal:0.01`` and ``uniform:0.05@middle``.
            probe: The probe's name; None for the default one.
            form: ``adapters`` to perturb the behavior held apart, ``merged`` the weights that it is written into.
            seeds: How often what is random is repeated.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            UsageError: No behavior, several and none named, or a perturbation out of range.
            InputError: Outputs hold NaN; nothing is recorded.
        """
        from rblstore.operations.study_svar import study_svar

        return study_svar(
            self._store,
            revision,
            behavior,
            perturbations,
            probe,
            form=form,
            seeds=seeds,
            dtype=dtype,
            author=self.author(author),
            progress=progress,
        )

    def study_entropy(
        self,
        revision: str = "HEAD",
        runs: int = 5,
        probe: str | None = None,
        *,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Reads a commit's identity anew several times: whether its outputs are the same bits, and their entropy.

        Args:
            revision: Which commit; its behaviors are left out.
            runs: How many.
            probe: The probe's name; None for the default one.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            UsageError: The number of runs is out of range.
            ConflictError: The model gives no distributions.
        """
        from rblstore.operations.study_entropy import study_entropy

        return study_entropy(
            self._store, revision, runs, probe, dtype=dtype, author=self.author(author), progress=progress
        )

    def study_interference(
        self,
        revision: str = "HEAD",
        behaviors: Sequence[str] | None = None,
        probe: str | None = None,
        *,
        subspaces: bool = True,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Measures how much of each behavior's effect is left beside each other one, and where both change weights.

        Args:
            revision: Which commit.
            behaviors: Which of its behaviors, at least two; None for all.
            probe: The probe's name; None for the default one.
            subspaces: Whether to compare the directions in which they change each tensor, too.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            TooFewBehaviorsError: There are fewer than two.
            ConflictError: The composition cannot be loaded, or the probe was not made for it.
        """
        from rblstore.operations.study_interference import study_interference

        who = self.author(author)
        return study_interference(
            self._store, revision, behaviors, probe, subspaces=subspaces, dtype=dtype, author=who, progress=progress
        )

    def study_attribution(
        self,
        revision: str = "HEAD",
        probe: str | None = None,
        *,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Measures which behavior moved which prompt, by leaving each out of the composition in turn.

        Args:
            revision: Which commit; it needs at least two behaviors.
            probe: The probe's name; None for the default one.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            TooFewBehaviorsError: There are fewer than two.
            ConflictError: The composition cannot be loaded, or the probe was not made for it.
        """
        from rblstore.operations.study_attribution import study_attribution

        return study_attribution(
            self._store, revision, probe, dtype=dtype, author=self.author(author), progress=progress
        )

    def study_shift(
        self,
        revision: str = "HEAD",
        behavior: str | None = None,
        *,
        held_out: str,
        probe: str | None = None,
        allow_shared: bool = False,
        tolerance: float = 1e-6,
        dtype: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StudyResult:
        """Takes a behavior out of the live model and proves it, under a probe and under prompts held out from it.

        Args:
            revision: Which commit.
            behavior: Which of its behaviors is taken out; None for all of them.
            held_out: The name of the other probe.
            probe: The probe's name; None for the default one.
            allow_shared: Whether the two probes may have prompts in common.
            tolerance: ILS (nats) above which a prompt is flagged.
            dtype: Of the loaded model: ``float32``, ``float64``, ``bfloat16`` or ``float16``; None for the stored one.
            author: Who.
            progress: Is told points.

        Raises:
            HeldOutProbeError: The probes are one, or share prompts.
            ConflictError: What is left cannot be composed, or a probe was not made for it.
        """
        from rblstore.operations.study_shift import study_shift

        return study_shift(
            self._store,
            revision,
            behavior,
            held_out=held_out,
            probe=probe,
            allow_shared=allow_shared,
            tolerance=tolerance,
            dtype=dtype,
            author=self.author(author),
            progress=progress,
        )

    def report(self, revision: str = "HEAD", *, progress: Progress | None = None) -> ReportResult:
        """Gathers everything that is known of a commit: parts, lineage, evidence, studies. No model is run.

        :func:`rblstore.report.writing.write_report` makes a page of it.

        Args:
            revision: Which commit.
            progress: Is told bytes read.

        Raises:
            NotFoundError: No such revision, or a branch without commits.
            CorruptError: Evidence, or something that is measured, is missing or damaged.
        """
        from rblstore import __version__
        from rblstore.operations.report import report

        return report(self._store, revision, version=__version__, progress=progress)
