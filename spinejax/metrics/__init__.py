"""How well one mask agrees with another.

`classification` counts agreement, `overlap` and `classification` form ratios of the counts,
`surface` measures distances in mm, `boundary` matches contours, `slices` compares slice by slice,
`patches` sums up a classifier, `errors` says which vertebra is missed and what is found instead,
`identification` scores numbered vertebrae one by one and `vertebra_scores` forms their means.
All are plain numpy on arrays with `spacing_mm`; which files are compared, and how cases are
summarised, is up to `spinejax.scoring`.
"""
