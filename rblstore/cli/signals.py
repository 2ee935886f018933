"""What Ctrl-C, SIGTERM and SIGHUP do.

While the program is being imported nothing is open, and it leaves at once. Afterwards the first signal is raised as
KeyboardInterrupt, so that everything that was begun is taken back on the way out. The second is ignored, since it would
cut that short; a third gets through, for whoever cannot wait: what then stays behind is never read, and `rbl gc`
collects it. Once the command is done they are ignored. What was ignored from the start (nohup) stays ignored.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as type checkers read it; importing it would take longer than all of this
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from types import FrameType
    from typing import Final
else:
    # What `signal` itself is made of. It adds names to the numbers, and the imports for that take longer than all that
    # comes before the signals are taken over: a Ctrl-C among them would print a traceback.
    import _signal as signal

CODES: Final[dict[int, str]] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung_up"}
"""Which signals end a command, and the failure's code."""

_IGNORED_WHILE_CLEANING: Final = 2
_STARTING, _RUNNING, _ENDED = range(3)


class _State:
    """What this process knows of its signals."""

    phase = _STARTING
    as_json = False
    first: int | None = None
    count = 0


def received() -> int | None:
    """The first signal since the command began, or None."""
    return _State.first


def exit_code() -> int:
    """What a command exits with that was ended by the signal received, or by Ctrl-C where there was none."""
    return 128 + (_State.first or signal.SIGINT)


def code() -> str:
    """The code of a failure by the same signal."""
    return CODES[_State.first or signal.SIGINT]


def message() -> str:
    """What is said of it."""
    return _message(_State.first or signal.SIGINT)


def _message(number: int) -> str:
    return f"{'interrupted' if number == signal.SIGINT else 'terminated'}; nothing is half done"


def install(arguments: Sequence[str]) -> None:
    """Takes the signals over; until :func:`begin` they end the process at once.

    Args:
        arguments: The command line, which says whether a JSON document is owed.
    """
    _State.phase, _State.first, _State.count = _STARTING, None, 0
    _State.as_json = "--json" in arguments
    for number in CODES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def begin() -> None:
    """From now on there may be something to take back."""
    _State.phase = _RUNNING


def end() -> None:
    """From now on there is nothing left to end."""
    _State.phase = _ENDED


def _handle(number: int, _: FrameType | None) -> None:
    if _State.phase == _ENDED:
        return
    if _State.phase == _STARTING:
        _leave(number)
    _State.first = _State.first or number
    _State.count += 1
    if _State.count != _IGNORED_WHILE_CLEANING:
        raise KeyboardInterrupt


def _leave(number: int) -> None:
    """Ends the process in the middle of an import, which an exception would not always get out of."""
    status = 128 + number
    try:
        if _State.as_json:
            named = f'"error": "{_message(number)}", "code": "{CODES[number]}"'
            os.write(1, f'{{{named}, "object": null, "hint": null, "exit_code": {status}}}\n'.encode())
        os.write(2, f"{_message(number)}\n".encode())
    finally:
        os._exit(status)
