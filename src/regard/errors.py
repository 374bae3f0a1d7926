"""What a command turns into one clear line.

Every error that a person can cause or repair is a :class:`RegardError`. Its message has three
parts: what is wrong with the actual value, what would be right, and what to do next. The command
line prints the message without a traceback and exits with code 2.
"""


class RegardError(Exception):
    """An error that the person at the keyboard can repair."""


class ConfigError(RegardError):
    """An option or a configuration file that cannot be used as given."""


class DataError(RegardError):
    """A data set that cannot be read as given."""


class PhotoError(RegardError):
    """One photo that cannot be opened; the message names the file.

    Args:
        message: one clear line.
        reason: what is wrong in a word or three, to count photos by: ``damaged``, ``empty``.
    """

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(RegardError):
    """A model folder, encoder or weight file that cannot be used as given."""


class CacheError(RegardError):
    """A feature cache that is stale, damaged or of another encoder."""


class MissingExtraError(RegardError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed. "
            f'Install them with: pip install "regard[{extra}]"'
        )


class ScoreUnavailable(RegardError):
    """A score that cannot be had on this machine; all others can."""
