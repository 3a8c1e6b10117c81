"""What a third party's exception says, short enough for a sentence."""

from __future__ import annotations

_MOST = 300


def reason(error: BaseException) -> str:
    """The exception's message on one line, cut to 300 characters, without a full stop; its type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= _MOST else text[:_MOST] + " ...").rstrip(".")
