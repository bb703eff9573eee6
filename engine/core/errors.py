"""The exceptions that reach a user: each is one sentence that says what was given, what is accepted, what to do."""

from __future__ import annotations

import signal


class DeepLightError(Exception):
    """The work failed although the request was sound. Exit status 1."""

    exit_code = 1


class InputError(DeepLightError):
    """The request cannot be met as given: bad usage, a bad file, layers that do not fit. Exit status 2."""

    exit_code = 2


class ArtifactError(InputError):
    """A model artifact is missing, damaged, unsafe or of another schema. Exit status 2."""


class DiskRefused(DeepLightError):
    """A file could not be written: the disk is full, or does not take it. Exit status 1."""


class Interrupted(BaseException):
    """The run was stopped by a signal and can be resumed. Exit status 128 + signal number.

    No Exception, as KeyboardInterrupt is none: it rises wherever the signal comes, and libraries pass over any
    Exception in places (Python's own resource tracker while it starts does, and a run would have gone on unstopped).
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum
