"""The error that every command turns into a message and exit status 1."""


class DataError(Exception):
    """Input that cannot be used. The message names the file, the value and what to do."""
