"""Names of this package's operators: those of the build, or of the source tree where nothing was built."""

from __future__ import annotations

try:
    from ._ops import add_op_namespace_prefix
except ImportError:  # `_ops.py` is written by kernel-builder

    def add_op_namespace_prefix(op_name: str) -> str:
        """`namespace::op_name`; the namespace is the import path, so that two copies can be loaded."""
        return f"{__package__.replace('.', '_')}_source::{op_name}"


__all__ = ["add_op_namespace_prefix"]
