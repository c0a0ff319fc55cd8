"""Gradients of biases made while the gradients that they are sums of are written, not from those read again (CUDA).

A bias is added to every row, so its gradient is the sum of the rows of another gradient. Between two products of a
block that one is written by a kernel that touches every number anyway: GELU's backward pass, and the joining of the
gradients of queries, keys and values. Both are operators here, with a reference and a Triton kernel.
"""

from sdfast.ops.bias_gradients.functional import apart_with_bias, gelu_with_bias

__all__ = ["apart_with_bias", "gelu_with_bias"]
