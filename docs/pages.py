"""Brings pages from outside ``docs/`` into the site: README.md as its home, the benchmarks, the studies and others.

mkdocs loads this file as a hook. Pages link to each other as files of the repository; here the links become the site's.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
NAMED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
OTHERS = ("benchmarks/*.md", "benchmarks/*.svg", "studies/*.md", "studies/*.yaml", "examples/*.py", "LICENSE")


@cache
def in_site() -> dict[str, str]:
    """Returns path in the repository → path in the site, for every file from outside ``docs/``."""
    paths = [path.relative_to(ROOT).as_posix() for pattern in OTHERS for path in sorted(ROOT.glob(pattern))]
    return NAMED | {path: path.replace("README.md", "index.md") for path in paths}


def relink(markdown: str, source: str) -> str:
    """Returns a page with the links of the site.

    Args:
        markdown: the page, whose links are relative to ``source``.
        source: its path in the repository.
    """

    def place(path: str) -> str:
        return in_site().get(path, path.removeprefix("docs/"))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return posixpath.relpath(place(target), posixpath.dirname(place(source)) or ".")

    return LINK.sub(link, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files to the site."""
    for source, place in in_site().items():
        level = InclusionLevel.INCLUDED  # although Python files of docs/ are excluded
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source), inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrites the links of every page."""
    sources = {place: source for source, place in in_site().items()}
    return relink(markdown, sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
