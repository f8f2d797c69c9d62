"""The one exception that means: the user can mend this."""


class FastmttError(Exception):
    """A mistake in what was given: the message says what was got, what was wanted, what to do.

    The commands print it as one sentence and leave with exit code 2, without a traceback. It stands
    on one line whatever was given: a file's name may hold line breaks.
    """

    def __init__(self, sentence: str) -> None:
        """Keep the sentence without its line breaks."""
        super().__init__(" ".join(sentence.splitlines()))


class NoStudentError(FastmttError, ValueError):
    """A network cannot be a student, whether it was handed in or asked for by name."""
