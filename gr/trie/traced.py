"""`traced_once`: for a small function that a program calls at many places."""

import functools

import jax

# Of `jax.jit` this keeps the memory alone: Python runs once for each shape of the arguments, in all programs together.
# What was traced is then written into the caller's program, which is the same as without. Constants of a module stay
# what they were when it was traced: a test that changes them calls the function's `__wrapped__`.
traced_once = functools.partial(jax.jit, inline=True)
