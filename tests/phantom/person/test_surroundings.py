"""Soft tissue of a person."""

import numpy as np


def test_soft_tissue_differs_between_persons(people):
    tissue = people["tissue"]
    for name in ("fat", "muscle", "blood", "cord"):
        assert np.ptp(np.asarray(tissue[name])) > 5, name
    assert len(np.unique(np.asarray(tissue["contrast"]) > 0)) == 2
