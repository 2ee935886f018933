"""Figures without global state: no pyplot, nobody else's settings, the same bytes for the same numbers.

matplotlib is imported when something is drawn, and not before.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, cast, get_args

from rblstore.errors import UsageError
from rblstore.report.palette import FAINT, GRID, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PlotFormat = Literal["pdf", "png", "svg"]

_SETTINGS: Final = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
}
_ONE_AT_A_TIME = threading.Lock()
_DOTS_PER_INCH: Final = 200


class UnknownPlotFormatError(UsageError):
    """A picture is asked for in a format that is not drawn."""

    code = "unknown_plot_format"


def plot_format(path: Path) -> PlotFormat:
    """The format that a file's name asks for.

    Raises:
        UnknownPlotFormatError: Its suffix is none of ``.svg``, ``.png`` and ``.pdf``.
    """
    return check_format(path.suffix.removeprefix(".").lower(), path.name)


def check_format(format: str, name: str) -> PlotFormat:
    """Refuses formats that are not drawn.

    Raises:
        UnknownPlotFormatError: It is none of ``svg``, ``png`` and ``pdf``.
    """
    if format not in get_args(PlotFormat):
        raise UnknownPlotFormatError(
            f"plots are not drawn as {format[:20]!r}" if format else f"{name[:200]!r} has no suffix",
            object=name[:200],
            hint="Name a file that ends in .svg, .png or .pdf.",
        )
    return cast("PlotFormat", format)


@contextmanager
def drawing(*, text: Literal["paths", "text"]) -> Iterator[None]:
    """Draws with our settings, whatever the process has set; one thread at a time.

    Args:
        text: Whether words of an SVG are ``paths`` (alike everywhere) or ``text`` (small, and can be searched).
    """
    import matplotlib as mpl
    from matplotlib import style

    ours: dict[str, Any] = {
        **_SETTINGS,
        "svg.fonttype": "path" if text == "paths" else "none",
        "svg.hashsalt": "rblstore",
    }
    with _ONE_AT_A_TIME, warnings.catch_warnings(), mpl.rc_context():
        # Signs that the font lacks are drawn as boxes; labels are cut already, so no axis can shrink to nothing.
        warnings.simplefilter("ignore", UserWarning)
        style.use(["default", ours])
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that keeps its parts from overlapping. Sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_bytes(figure: Figure, format: PlotFormat) -> bytes:
    """A drawn figure in a format."""
    metadata: dict[PlotFormat, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": "rblstore"},
        "pdf": {"CreationDate": None, "Creator": "rblstore"},
        "png": {"Software": "rblstore"},
    }
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format=format, metadata=metadata[format], dpi=_DOTS_PER_INCH if format == "png" else "figure"
    )
    return buffer.getvalue()


def draw(make: Callable[[], Figure], out: Path | BinaryIO, format: PlotFormat) -> None:
    """Draws a figure into a file, which is there whole or not at all, or into a stream.

    Raises:
        FileWriteError: The system refused.
    """
    with drawing(text="paths"):
        data = figure_bytes(make(), format)
    if not isinstance(out, Path):
        out.write(data)
        return
    from rblstore.report.writing import write_whole

    write_whole(out, data, force=True)
