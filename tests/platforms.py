"""What another platform would run, on this machine."""


def of_tpu(*arguments, tpu=None, default=None, **others):
    """Takes the place of `jax.lax.platform_dependent`, as a TPU would choose."""
    return (default if tpu is None else tpu)(*arguments)
