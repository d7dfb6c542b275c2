"""Looking up a name that the user gave among those there are."""

import difflib
from collections.abc import Collection

from spinejax.errors import InputError


def check_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise InputError unless `value` is one of `choices`, naming all of them and the closest."""
    if value in choices:
        return
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{field} = {value!r} is unknown: choose one of {sorted(choices)}{hint}")
