"""Matrix products as accelerators compute them, on a CPU: float32 operands are rounded first, sums stay in float32."""

import contextlib

import jax
from jax import lax
from jax._src.interpreters import mlir
from jax._src.lib.mlir.dialects import hlo

# Mantissa bits that an operand keeps: of bfloat16, nearly of two bfloat16 together, and of TF32. The others keep all.
MANTISSA_BITS = {
    "tpu": {lax.Precision.DEFAULT: 7, lax.Precision.HIGH: 15},
    "gpu": {lax.Precision.DEFAULT: 10, lax.Precision.HIGH: 10},
}


@contextlib.contextmanager
def products_of(device):
    """Within it, programs are compiled with the products of "tpu" or "gpu", at the precision that they ask for."""
    plain = mlir._platform_specific_lowerings["cpu"][lax.dot_general_p].rule

    def rounded(context, *operands, precision, **others):
        level = lax.Precision.DEFAULT if precision is None else precision[0]
        bits = MANTISSA_BITS[device].get(level)
        if bits is not None:
            operands = [
                hlo.reduce_precision(operand, mlir.i32_attr(8), mlir.i32_attr(bits))
                if aval.dtype == "float32"
                else operand
                for operand, aval in zip(operands, context.avals_in, strict=True)
            ]
        return plain(context, *operands, precision=precision, **others)

    mlir.register_lowering(lax.dot_general_p, rounded, platform="cpu")
    jax.clear_caches()
    try:
        yield
    finally:
        mlir.register_lowering(lax.dot_general_p, plain, platform="cpu")
        jax.clear_caches()
