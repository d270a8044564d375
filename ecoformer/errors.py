"""The one exception that means "the user's input is wrong"."""


class InputError(ValueError):
    """A value from the user that cannot be used.

    The message is one line that states the value, the limit and the remedy. The command lines print it
    and exit with code 2; every other exception is a defect of ours and keeps its traceback.
    """
