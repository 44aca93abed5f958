"""The file format of the Deep Compression paper, which belongs to a benchmark."""

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[1] / "benchmarks" / "lenets" / "paper_format.py"
_spec = importlib.util.spec_from_file_location("lenets_paper_format", _PATH)
assert _spec is not None
assert _spec.loader is not None
paper_format = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(paper_format)
