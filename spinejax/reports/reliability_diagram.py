"""Reliability diagram: the share of right names over the probability that was said."""

import io
from collections.abc import Mapping
from typing import Any

from spinejax.inference.sequence import CERTAIN
from spinejax.reports import plots
from spinejax.reports.plots import Figure, FigureCanvasAgg

_BEFORE, _AFTER = "#d95f02", "#1f78b4"


@plots.defaults()
def png(before: Mapping[str, Any], after: Mapping[str, Any], judged_by: str) -> bytes:
    """Return the diagram as the bytes of a PNG.

    Each dot stands for the names whose probabilities lie in one interval of `reliability.BINS`. Its
    area grows with their number, which is written beside it.

    Args:
        before: of `calibration.calibrate`, with the numbers of the model.
        after: the same with fitted numbers.
        judged_by: the scans.
    """
    figure = Figure(figsize=(6.4, 6.4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.12, 0.1, 0.84, 0.78))
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, label="as right as it says")
    axes.axvline(CERTAIN, color="#bbbbbb", linewidth=1, linestyle=":")
    for name, found, colour, up in (("before", before, _BEFORE, -1), ("after", after, _AFTER, 1)):
        rows = found["reliability"]
        total = max(1, sum(row["names"] for row in rows))
        x, y = [row["probability"] for row in rows], [row["right"] for row in rows]
        axes.plot(x, y, color=colour, linewidth=1.5, label=f"{name} calibration")
        axes.scatter(x, y, [20 + 300 * row["names"] / total for row in rows], colour, alpha=0.7)
        for row in rows:
            axes.annotate(
                str(row["names"]),
                (row["probability"], row["right"]),
                xytext=(-8, 10 * up),
                textcoords="offset points",
                ha="right",
                va="center",
                color=colour,
                fontsize=9,
            )
    axes.set(
        xlim=(0, 1.02),
        ylim=(0, 1.04),
        xlabel="probability of a name, as the decoder says it (mean of an interval)",
        ylabel="share of these names that is right",
    )
    axes.legend(loc="upper left", frameon=False)
    figure.text(0.12, 0.95, "Are names as often right as their probability says?", size=13)
    words = f"Judged by {judged_by}.\nBeside the dots: numbers of names."
    figure.text(0.12, 0.895, words, size=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
