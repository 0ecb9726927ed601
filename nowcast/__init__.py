"""nowcast: from radar files to a served, verified precipitation nowcast.

The public names load on first use, so that ``import nowcast`` costs next to nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Config": "nowcast.config",
    "check_nowcast": "nowcast.conventions",
    "check_observations": "nowcast.conventions",
    "issue": "nowcast.issuing",
    "open_nowcaster": "nowcast.nowcasters",
    "open_observations": "nowcast.data.observations",
    "synthesise": "nowcast.data.synthetic",
    "train": "nowcast.training",
    "verify": "nowcast.verification",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nowcast' has no attribute {name!r}; it has {sorted(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
