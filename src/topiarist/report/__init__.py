"""Reports: tables, figures, and one page that holds everything."""

from topiarist.report.benches import save_bench
from topiarist.report.latencies import save_latencies
from topiarist.report.page import render, rewrite, write_report
from topiarist.report.patterns import save_pattern
from topiarist.report.sensitivity import save_sensitivity
from topiarist.report.terminal import show

__all__ = [
    "render",
    "rewrite",
    "save_bench",
    "save_latencies",
    "save_pattern",
    "save_sensitivity",
    "show",
    "write_report",
]
