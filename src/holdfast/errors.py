"""Errors for the user. Each message names the value, the rule it breaks, and the way out."""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """A failure while running; the command line prints the message and exits with 1."""

    exit_code: ClassVar[int] = 1


class UsageError(HoldfastError):
    """The user must change the command, its options or its input files; exits with 2."""

    exit_code: ClassVar[int] = 2


class DataError(UsageError):
    """A data file breaks a rule; the message begins with `file:line`."""


class MismatchError(UsageError):
    """Two artifacts do not belong together (other data, other model, other schema)."""


class Busy(UsageError):  # noqa: N818  # not an error
    """Another process is running the same job."""


class DiskFull(HoldfastError):  # noqa: N818  # the word for it
    """The disk is full, so no other job can write its results either."""


class JobError(HoldfastError):
    """A job was killed or ended with an unexpected error."""


class TrainingError(HoldfastError):
    """Training cannot go on, for example because the loss is not finite."""


class Interrupted(HoldfastError):  # noqa: N818  # not an error
    """The user pressed Ctrl-C; exits with 130, as a shell does."""

    exit_code: ClassVar[int] = 130
