"""What the public repository does for its storage: what it takes, whether it is whole, how it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.configuration import Compression
    from rblstore.operations.du import CommitUsage, RepositoryUsage
    from rblstore.operations.fsck import FsckResult
    from rblstore.operations.gc import GcResult
    from rblstore.operations.gc_restore import RestoreResult
    from rblstore.operations.progress import Progress
    from rblstore.operations.repack import RepackResult


class Maintenance:
    """What :class:`rblstore.Repository` does for its storage."""

    _store: Store

    def du(self, revision: str | None = None) -> RepositoryUsage | CommitUsage:
        """What the repository takes on disk; or, of a commit, what each part takes and shares, and what it added."""
        from rblstore.operations.du import commit_usage, repository_usage
        from rblstore.operations.steady_packs import while_packs_stay

        if revision is None:
            return while_packs_stay(self._store, lambda: repository_usage(self._store))
        return while_packs_stay(self._store, lambda: commit_usage(self._store, revision))

    def fsck(self, *, full: bool = False, progress: Progress | None = None) -> FsckResult:
        """Checks the storage and changes nothing; damage is in the result, not raised."""
        from rblstore.operations.fsck_beside_writers import fsck_beside_writers

        return fsck_beside_writers(self._store, full=full, progress=progress)

    def repack(
        self, *, compression: Compression | None = None, dry_run: bool = False, progress: Progress | None = None
    ) -> RepackResult:
        """Stores everything anew where that takes fewer bytes: by a policy, as differences, in fewer packs.

        No id changes, and nobody who reads meanwhile notices.

        Args:
            compression: ``fast``, ``max`` or ``none``; None for what the settings say.
            dry_run: Whether only to say what would be done.
            progress: Is told bytes looked at, and then bytes written anew.

        Raises:
            LockedError: Another process is writing.
            CorruptError: Something stored is damaged; nothing was changed.
        """
        from rblstore.operations.repack import repack

        return repack(self._store, compression=compression, dry_run=dry_run, progress=progress)

    def gc(self, *, apply: bool = False, grace_days: int | None = None, progress: Progress | None = None) -> GcResult:
        """Finds what no ref, no recent operation and no young pack reaches, and says what would be done about it.

        With ``apply`` it goes to the trash, where it lies for the days of grace; what has lain there for so long is
        deleted. Nobody who reads meanwhile notices.

        Args:
            apply: Whether to do it.
            grace_days: For how long what nothing reaches stays, and then stays in the trash; None for what the settings
                say (``gc.grace``, 14).
            progress: Is told bytes read, and then bytes written anew.

        Raises:
            LockedError: Somebody is writing, and took too long.
            CorruptError: Something stored is damaged; nothing was changed.
            GcUnfinishedError: The system refused half-way; the next gc goes on.
        """
        from rblstore.operations.gc import gc

        return gc(self._store, apply=apply, grace_days=grace_days, progress=progress)

    def restore_trash(self, *, progress: Progress | None = None) -> RestoreResult:
        """Brings back what gc took and has not deleted yet. Commits come back without the branches they were on.

        Args:
            progress: Is told bytes read.

        Raises:
            LockedError: Somebody is writing, and took too long.
        """
        from rblstore.operations.gc_restore import restore_trash

        return restore_trash(self._store, progress=progress)
