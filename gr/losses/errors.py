"""The error of the losses."""

from gr.errors import GrError


class LossError(GrError):
    """Raised for a loss or reward that cannot be computed as asked: names the field and the remedy."""
