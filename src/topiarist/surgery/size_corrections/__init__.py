"""Corrections of the sizes and numbers that a module's code computes wrongly after a cut: the code, edited.

Some code states a size that no attribute holds (``x.view(B, N, 3, C // 64)``), or computes a scale from a shape
(``q * C ** -0.5``). A person would write the right number there; so does this room. The module gets a copy of its
forward, and of the helper functions on the way, in which that one expression is corrected. Every other branch keeps its
own code, nothing is counted, and tracing, compiling and exporting see plain Python.
"""

from topiarist.surgery.size_corrections.forward import CorrectedForward, install_corrections

__all__ = ["CorrectedForward", "install_corrections"]
