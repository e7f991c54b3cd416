"""The one error that means: what the user gave cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A user's bad input, told in one line: what was given, what came, what was expected.

    The commands print it without a traceback and exit with status 2. Line breaks in the message (from a
    file name, or from a library's own message) become spaces, so that it stays one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))
