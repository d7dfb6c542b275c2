"""Aligned text tables for the terminal."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], align: str = "lr", gap: str = "  ") -> str:
    """Return rows as lines of text whose columns are aligned.

    Args:
        rows: cells of each row; all rows have the same number of cells.
        align: "l" (left) or "r" (right) for each column; the last letter holds for all further
            columns.
        gap: text between two columns.

    Returns:
        The lines, without blanks at their ends; "" for no rows.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    return "\n".join(
        gap.join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=False)
        ).rstrip()
        for row in rows
    )
