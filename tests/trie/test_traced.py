import functools

import jax
import jax.numpy as jnp

from gr.trie.traced import traced_once


def test_python_runs_once_for_each_shape_and_the_program_is_as_without():
    shapes = []

    def small(x, factor):
        shapes.append(x.shape)
        return jax.lax.platform_dependent(x, tpu=jnp.cos, default=jnp.sin) * factor

    def program(function, x):
        return function(function(x, 2), 2) + function(x[:3], 2).sum()

    x = jnp.arange(5.0)
    once = traced_once(small, static_argnames="factor")
    found = jax.make_jaxpr(functools.partial(program, once))(x)
    jax.make_jaxpr(lambda x: once(x, 2))(x + 1)  # Another program.
    assert shapes == [(5,), (3,)]
    assert str(found) == str(jax.make_jaxpr(functools.partial(program, small))(x))
