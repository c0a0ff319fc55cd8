"""Triton's interpreter, as the tests need it; imported before the kernels that it is to run."""

from __future__ import annotations

import os
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def let_arrays_of_one_number_be_indices() -> None:
    """Triton 3.6's interpreter takes a loop's bounds out of arrays [1], which numpy 2.4 refuses; 3.8 knows that."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


if INTERPRETED:
    import triton

    if triton.__version__.startswith("3.6."):
        let_arrays_of_one_number_be_indices()
