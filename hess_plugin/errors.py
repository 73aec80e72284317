"""The one exception that means "what you gave cannot be used"; the command line prints only its message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def input_errors(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turn errors of these kinds, which the user can mend, into `InputError`; all others pass unchanged.

    Wrapped as closely as possible around the call that reads what the user gave: a bug keeps its traceback.

    Example:
        >>> with input_errors(KeyError, prefix="cannot read cameras.json: "):
        ...     {}["K"]
        Traceback (most recent call last):
        ...
        hess_plugin.errors.InputError: cannot read cameras.json: 'K'
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{prefix}{error}") from error
