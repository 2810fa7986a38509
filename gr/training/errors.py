"""What the training room raises."""


class TrainingError(ValueError):
    """Raised for a run that cannot start, go on or be restored; the message names the field or folder and the remedy."""
