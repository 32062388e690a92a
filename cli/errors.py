"""What stops a command: shown as one line, exit status 1.

CommandError
├── Refused      `up` cannot start here; the line says what to change
├── NotStarted   a program of `up` ended again and again before it was ready
└── NoAnswer     the server is not there, or says no
"""


class CommandError(Exception):
    """Base of them all."""


class Refused(CommandError):
    """Something on this machine has to change first."""


class NotStarted(CommandError):
    """A program does not come up."""


class NoAnswer(CommandError):
    """The server does not give what was asked for."""
