"""The one exception that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Bad input: a file, a folder, a flag or a config value.

    The message is one line that says what is wrong, where, and what to do next. The command line
    prints it without a traceback and exits with status 1; library users catch it like any
    ValueError.
    """
