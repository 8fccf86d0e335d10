"""The one exception that users see as a sentence instead of a traceback."""


class OmniForcingError(Exception):
    """Something the user can mend: the message says what was expected, what was found, where, and what to do."""
