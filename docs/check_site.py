"""Check a built site without a network: links and anchors lead somewhere, and pages load nothing from other hosts.

python docs/check_site.py docs/_build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["faults"]

LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("link", "href")}
# <link> is not loaded where it only says how pages belong together.
RELATIONS = {"canonical", "index", "search", "next", "prev", "author", "genindex"}


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.names.update(given[name] for name in ("id", "name") if name in given)
        for name in ("href", "src"):
            if given.get(name):
                self.links.append(given[name])
                if (tag, name) in LOADED and given.get("rel") not in RELATIONS:
                    self.loaded.append(given[name])


def faults(site: Path) -> list[str]:
    """Return one line for each link, anchor or file that is missing, and for each thing from another host.

    Args:
        site: folder of a built site.
    """
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{where} loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{where}: there is no {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                found.append(f"{where}: there is no place {link}")
    for style in site.rglob("*.css"):
        if "url(http" in style.read_text(encoding="utf-8").replace('"', "").replace("'", ""):
            found.append(f"{style.relative_to(site)} loads from another host")
    return found


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]))
    print("\n".join(lines) or "All links of the site lead somewhere, and nothing comes from another host.")
    sys.exit(bool(lines))
