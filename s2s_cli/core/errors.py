"""What can go wrong in a way its user can mend.

Every error that core raises on purpose is an `S2SError`: its text is one to three lines that say
what is wrong, where, and what to do now. The command line prints the text and leaves with
`exit_code`; anything else that escapes is a bug and shows its traceback.

    S2SError
    ├── RecipeError      a recipe file, a key, a `--set`
    ├── DataError        a corpus, a prepared corpus, lines that arrive through a pipe
    ├── ModelError       a model file or a run folder
    ├── DeviceError      a device or a precision that this machine does not have
    └── DivergedError    training that cannot go on
"""


class S2SError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class RecipeError(S2SError):
    """A recipe that cannot be read, or that asks for something that does not exist."""


class DataError(S2SError):
    """Text or prepared data that cannot be used as it is."""


class ModelError(S2SError):
    """A model file or run folder that is missing, damaged or made for something else."""


class DeviceError(S2SError):
    """A device or precision that was asked for and is not there."""


class DivergedError(S2SError):
    """The loss is no longer a finite number."""

    exit_code = 3
