"""Tables, figures and one self-contained page from the plain values of ``results.json``."""

from topiarist.report.page import read_results, render, write_report
from topiarist.report.terminal import show

__all__ = ["read_results", "render", "show", "write_report"]
