"""What the training room raises."""


class TrainingError(ValueError):
    """Raised for a run that cannot start, go on or be restored: names the field or folder and the remedy."""
