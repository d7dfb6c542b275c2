"""Agreement of two masks.

`classification` counts agreement. `overlap` and `classification` form ratios of the counts.
`surface` measures distances in mm, `boundary` matches contours, and `slice_dice` compares slice by
slice. `mistakes` measures missed vertebrae and false positives. `identification` scores numbered
vertebrae. `aggregate` forms statistics over cases and tables of them. `body_centres` finds the
centres of vertebral bodies.

All of them are NumPy on arrays with `spacing_mm`. `spinejax.scoring` decides which files are
compared and how cases are summarised.
"""
