"""The one exception that users are meant to see: a sentence that says what is wrong and what to do about it."""


class TopiaristError(Exception):
    """Bad input or an impossible request, in one sentence with its remedy.

    The command line prints the sentence and leaves with exit status 2; every other exception is a bug of ours.
    """
