"""Pictures of matplotlib that leave its global state alone."""

from __future__ import annotations

from typing import Any


def new_figure(width: float, height: float, *, title: str = "", dpi: int = 130) -> Any:
    """Make a figure of so many inches, without pyplot, which chooses a display for a process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    return figure
