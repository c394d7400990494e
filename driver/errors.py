"""Errors that a user or a task causes. Each message is one line that names the thing and the remedy."""

from __future__ import annotations


class LatdynError(Exception):
    """Any failure that is reported as one line rather than as a traceback."""


class UsageError(LatdynError):
    """Wrong usage, configuration or input; found before anything runs. Exit code 2."""


class InterruptedRunError(LatdynError):
    """The run cannot go on here and now, but the same command will: submit again. Exit code 75."""


class TaskError(LatdynError):
    """A task cannot succeed however often it is tried (unsupported element, exploded run, overlapping atoms).

    A task that raises it is quarantined at once; any other exception is retried up to `max_attempts`.
    """
