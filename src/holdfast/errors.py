"""The errors that reach a user: each names the value, the rule that it broke, and the way out."""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """Something went wrong while running; the command line prints the message and exits with 1."""

    exit_code: ClassVar[int] = 1


class UsageError(HoldfastError):
    """The command, its options or its input files must be changed by the user; exits with 2."""

    exit_code: ClassVar[int] = 2


class DataError(UsageError):
    """A data file breaks a rule; the message begins with `file:line`."""


class MismatchError(UsageError):
    """Two artifacts do not belong together (other data, other model, other schema)."""


class Busy(UsageError):  # noqa: N818  # it is no error
    """Another process is running the same job."""


class DiskFull(HoldfastError):  # noqa: N818  # the word for it
    """There is no room on the disk: nothing else that writes can succeed either."""


class JobError(HoldfastError):
    """A job ended without a word of its own: killed, or with an error that nobody foresaw."""


class TrainingError(HoldfastError):
    """Training cannot go on, for example because the loss is not finite."""


class Interrupted(HoldfastError):  # noqa: N818  # it is no error
    """The user pressed Ctrl-C; exits with 130, as a shell does."""

    exit_code: ClassVar[int] = 130
