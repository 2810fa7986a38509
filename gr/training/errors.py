"""What the training room raises."""

from gr.errors import GrError


class TrainingError(GrError):
    """Raised for a run that cannot start, go on or be restored: names the field or folder and the remedy."""
