"""What several tests use, and the programs that they start."""

import atexit
import gc

# As the command line does: to trace a program makes many small objects, which stay, and Python
# would look through them again and again for garbage.
gc.set_threshold(50_000, 10, 5)
atexit.register(gc.freeze)
