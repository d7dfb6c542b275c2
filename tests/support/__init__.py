"""What several tests use, and the programs that they start."""

import gc

# As the command line does: to trace a program makes many small objects, which stay, and Python
# would look through them again and again for garbage.
gc.set_threshold(50_000, 10, 5)
