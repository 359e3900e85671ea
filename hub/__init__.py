"""Weights as files and on the Hugging Face Hub: folders, downloads, conversions.

Knows configs and files, not model names.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.callback import PushToHub as PushToHub
    from hub.checkpoint import read as read
    from hub.checkpoint import save as save
    from hub.errors import HubError as HubError
    from hub.remote import pull as pull
    from hub.remote import push as push

_HOME = {
    "HubError": "errors",
    "save": "checkpoint",
    "read": "checkpoint",
    "pull": "remote",
    "push": "remote",
    "PushToHub": "callback",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
