"""Aligned text tables."""

import pytest

from spinejax.text_table import text_table

ROWS = [("", "Dice", "n"), ("verse500", "0.9", "12"), ("a", "0.85", "3")]


@pytest.mark.parametrize(
    ("align", "expected"),
    [
        ("lr", ["          Dice   n", "verse500   0.9  12", "a         0.85   3"]),
        ("r", ["          Dice   n", "verse500   0.9  12", "       a  0.85   3"]),
        ("llr", ["          Dice   n", "verse500  0.9   12", "a         0.85   3"]),
    ],
)
def test_columns_are_aligned(align, expected):
    assert text_table(ROWS, align).splitlines() == expected


def test_no_rows_give_no_text():
    assert text_table([]) == ""


def test_lines_have_no_blanks_at_their_ends():
    assert text_table([("a", "long"), ("b", "")], "l").splitlines()[1] == "b"


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        text_table([("a", "b"), ("c",)])
