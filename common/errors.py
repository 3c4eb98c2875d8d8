"""The error that every command turns into a message and exit status 1."""


class DataError(Exception):
    """Unusable input; the message names the file, the value and what to do."""
