"""Brings pages from outside ``docs/`` into the site: README.md as its home, the benchmarks, the studies and others.

mkdocs loads this file as a hook. Links between these files are rewritten, so that they work in both.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
NAMED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FOLDERS = ("benchmarks/*.md", "studies/*.md", "studies/*.yaml", "examples/*.py", "LICENSE")


def outside() -> dict[str, str]:
    """Returns the path in the repository → the path in the site of every file that is brought in."""
    found = [path.relative_to(ROOT).as_posix() for pattern in FOLDERS for path in sorted(ROOT.glob(pattern))]
    return NAMED | {path: path.replace("README.md", "index.md") for path in found}


def relinked(text: str, source: str) -> str:
    """Returns a page's text with links that work in the site.

    Args:
        text: Markdown, whose links are relative to ``source``.
        source: path of the page in the repository.
    """
    places = outside()
    folder = posixpath.dirname(places[source])

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return posixpath.relpath(places.get(target, target.removeprefix("docs/")), folder or ".")

    return LINK.sub(link, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files, for mkdocs."""
    for source, place in outside().items():
        if source.endswith(".md"):
            content = relinked((ROOT / source).read_text(encoding="utf-8"), source)
            files.append(File.generated(config, place, content=content))
        else:
            level = InclusionLevel.INCLUDED  # although docs/*.py is excluded
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source), inclusion=level))
    return files
