"""Files of the repository that pages link to are pages of the site.

A page links to ``../examples/edges_teacher.py`` as on any forge; in the site that is a page of its
own below ``files/``. Nothing may be fetched from elsewhere. mkdocs calls the functions named
``on_...`` (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FETCHED = re.compile(r"<(?:script|img|source|iframe|link)\b[^>]*?[\"'](?:https?:)?//[^>]*>")
LANGUAGES = {".py": "python", ".sbatch": "bash", ".toml": "toml", "": "make"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every file outside docs/ that a page links to, or such a file itself."""
    unread = list(files.documentation_pages())
    while unread:
        page = unread.pop()
        for _, target, _ in LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, target)
            uri = _uri(path)
            if uri.startswith("files/") and (ROOT / path).is_file() and uri not in files.src_uris:
                added = File.generated(config, uri, content=_shown(path))
                added.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(added)
                unread.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to those pages; one to a folder is its words. mkdocs refuses what is not there."""
    here = page.file.src_uri

    def shown(match: re.Match[str]) -> str:
        path = _in_repository(here, match[2])
        if (ROOT / path).is_dir():
            return match[1]
        if _uri(path) not in files.src_uris:
            return match[0]
        to = posixpath.relpath(_uri(path), posixpath.dirname(here))
        return f"[{match[1]}]({to}{match[3] or ''})"

    return LINK.sub(shown, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """PluginError where a page fetches a script, style, font or picture from another place."""
    if fetched := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches {fetched[0]}: the site asks nobody.")
    return output


def _in_repository(page: str, target: str) -> str:
    """``examples/x.py`` for where a page's link leads, seen from the root of the repository."""
    own = page.removeprefix("files/") if page.startswith("files/") else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(own), target))


def _uri(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path if path.endswith('.md') else f'{path}.md'}"


def _shown(path: str) -> str:
    """The page of a file: Markdown as it is, anything else as a listing."""
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{text}````\n"
