"""Another file or folder under the name of one of our packages, such as a ``hub.py`` beside the user's script."""

import importlib.util
import os

__all__ = ["refuse_shadows"]


def refuse_shadows() -> None:
    """Raise `ImportError` where Python finds something else under the name of one of our packages."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("hub", "datamodules", "lightning_modules"):
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # put into sys.modules by hand
            continue
        # A package has folders, a module a file.
        folders = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin]
        found = next(filter(None, folders), None)
        if found and os.path.realpath(found) != os.path.realpath(os.path.join(ours, name)):
            raise ImportError(f"{found} hides the package {name!r}, which zoo needs; rename that file or folder, or "
                              "start Python elsewhere.", name=name, path=found)  # fmt: skip
