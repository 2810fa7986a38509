"""The error that all others of the library derive from."""


class GrError(ValueError):
    """Raised for what the caller can mend: the message names the file, line or field, and the remedy."""
