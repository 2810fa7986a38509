"""The base class of the library's errors."""


class GrError(ValueError):
    """Base of every error that the caller can fix; the message names the file, line or field, and the remedy."""
