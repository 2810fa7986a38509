"""What the losses room raises."""


class LossError(ValueError):
    """Raised for a loss or reward that cannot be computed as asked: names the field and the remedy."""
