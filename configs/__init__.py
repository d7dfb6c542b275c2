"""One experiment per file; each has `get_config(arg)`."""
