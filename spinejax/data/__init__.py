"""From files to batches: NIfTI, VerSe, phantoms, preprocessing, cache, Grain."""
