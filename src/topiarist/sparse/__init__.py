"""Unstructured sparsity that runs fast on an ordinary CPU: kernels that are written when they are needed."""

from topiarist.sparse.machine import Machine, host, without
from topiarist.sparse.module import SparseModule, compile

__all__ = ["Machine", "SparseModule", "compile", "host", "without"]
