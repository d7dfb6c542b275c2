"""The table of measures against the truth: errors by hand."""

from tests.benchmarks import measures


def test_the_table_has_mean_and_greatest_error_and_counts_what_was_not_measured():
    pairs = [("depth_mm", 30.0, 31.0), ("depth_mm", 20.0, 18.0), ("depth_mm", 25.0, None)]
    head, row = measures.table(pairs).splitlines()
    assert head.split()[:2] == ["measure", "n"]
    # Errors of 1 and -2: mean -0.5, mean size 1.5, standard deviation 1.5, greatest 2.
    assert row.split() == ["depth_mm", "2", "1", "20.50", "to", "29.50", "-0.50", "1.50", "1.50", "2.00"]  # fmt: skip # noqa: E501
