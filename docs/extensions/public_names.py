"""Public names that no section of a package's page names yet stand at the end of that page."""

import importlib
import inspect
import re

from sphinx.application import Sphinx

__all__ = ["PACKAGES", "named_on", "rest_of"]

# Page of docs/api -> package.
PACKAGES = {
    **{name: name for name in ("zoo", "hub", "datamodules", "lightning_modules")},
    **{name: f"lightning_modules.{name}" for name in ("nets", "ops")},
}


def named_on(page: str, package: str) -> list[str]:
    """Return the names of a package that the text of a page has."""
    return re.findall(rf"^\.\. auto\w+:: {package}\.(\w+)$", page, re.MULTILINE)


def rest_of(page: str, package: str) -> str:
    """Return the last section of a page, with the other public names of the package; empty without any."""
    module = importlib.import_module(package)
    entries = []
    for name in sorted(set(module.__all__) - set(named_on(page, package))):
        thing = getattr(module, name)
        is_error = inspect.isclass(thing) and issubclass(thing, Exception)
        kind = "exception" if is_error else "class" if inspect.isclass(thing) else "function"
        entries.append(f".. auto{kind}:: {package}.{name}\n")
    return "\n".join(["\n## More\n\n```{eval-rst}", *entries, "```\n"]) if entries else ""


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    folder, _, name = page.rpartition("/")
    if folder == "api" and name in PACKAGES:
        source[0] += rest_of(source[0], PACKAGES[name])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _complete)
    return {"parallel_read_safe": True}
