"""Lightning's two packages, `lightning` and `pytorch_lightning`: the same code, with classes of its own in each.

A trainer knows the classes of its own package alone. So what qgru hands to a trainer inherits from both packages'
classes, and what a user has handed to one is looked for among both; either package alone will do.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Union

import lightning_utilities.core.rank_zero as rank_zero
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = [
    "PACKAGES",
    "Callback",
    "CombinedLoader",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "Trainer",
    "classes",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]

_ROOTS = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
_OLDEST = (2, 6)


def _installed() -> tuple[str, ...]:
    """Import what there is of the two packages.

    Raises:
        ImportError: where there is neither, or one that is too old; the message names it.
    """
    found, log = [], rank_zero.log if any(map(sys.modules.get, _ROOTS)) else None
    for root, package in _ROOTS.items():
        try:
            version = import_module(root).__version__
        except ModuleNotFoundError as error:
            if error.name != root:
                raise
            continue
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            raise ImportError(f"{root} is version {version}; qgru.callbacks expects 2.6 or later")
        import_module(package)
        found.append(package)
        log = log or rank_zero.log
    if not found:
        raise ImportError(f"qgru.callbacks needs {' or '.join(_ROOTS)}, 2.6 or later; neither is installed")
    rank_zero.log = log  # the package that is imported last takes over the messages of the one in use
    return tuple(found)


PACKAGES = _installed()
"""The modules of those that are installed."""


def classes(name: str) -> tuple[type, ...]:
    """Return every installed package's class, to inherit from or for `isinstance`.

    Args:
        name: within the package, such as ``"callbacks.ModelCheckpoint"``.
    """
    path, _, attribute = name.rpartition(".")
    return tuple(getattr(import_module(f"{package}.{path}".rstrip(".")), attribute) for package in PACKAGES)


class Callback(*classes("Callback")):
    """A callback for the trainers of both packages."""


class MisconfigurationException(*classes("utilities.exceptions.MisconfigurationException")):
    """What both packages raise for settings that don't go together."""


CombinedLoader = classes("utilities.CombinedLoader")[0]  # it takes any loaders, whoever trains on them

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
else:
    LightningDataModule = Union[classes("LightningDataModule")]  # noqa: UP007
    LightningModule = Union[classes("LightningModule")]  # noqa: UP007
    Trainer = Union[classes("Trainer")]  # noqa: UP007
