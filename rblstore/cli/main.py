"""The entry point: ``rbl``, ``python -m rblstore`` and ``python -m rblstore.cli.main``.

It says first what signals do; only then is the program imported, which takes most of the time of a short command.
"""

from __future__ import annotations

try:
    import atexit
    import gc
    import os
    import sys

    from rblstore.cli import signals
except KeyboardInterrupt:  # before it could be taken over
    raise SystemExit(130) from None

TYPE_CHECKING = False  # as type checkers read it; the module that has it takes as long to import as all of this
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        argv: The arguments, without the program's name; None takes those of the process.
    """
    signals.install(sys.argv[1:] if argv is None else argv)
    # Imports make hundreds of thousands of objects that all stay. Looking for garbage among them, again and again and
    # once more at the end, takes a third of the time of a short command.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    # numpy moves bytes here and multiplies little: threads that spin while they wait for matrices take a core away.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rblstore.cli.program import rbl

    try:
        signals.begin()
        rbl.main(args=argv, prog_name="rbl")
    except KeyboardInterrupt:  # before the command had begun, or when it was done
        sys.exit(signals.exit_code())
    finally:
        signals.end()


if __name__ == "__main__":
    main()
