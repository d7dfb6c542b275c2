"""Data sets on disk: the index of VerSe and of plain folders, splits, taking stock."""
