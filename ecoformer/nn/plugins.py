"""Packages of others that add attention kinds, readers of layers, data sources, callbacks, loggers and prices.

A plugin is a module that registers what it brings when it is imported; CONTRIBUTING.md has one. Installed packages
name theirs as an entry point of the group "ecoformer.plugins"; a module that is not installed is named by
`plugins=[MODULE]`, or for any command by ECOFORMER_PLUGINS=MODULE in the environment. Modules are imported for what the
command line and the environment say, never for what a checkpoint says.
"""

import functools
import importlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, EntryPoints, entry_points

from ecoformer.errors import InputError, one_line

GROUP, VARIABLE = "ecoformer.plugins", "ECOFORMER_PLUGINS"
_loaded: set[EntryPoint] = set()


def load_installed() -> None:
    """Import the plugins of all installed packages, once, and the modules that ECOFORMER_PLUGINS names.

    Raises InputError if one cannot be imported.
    """
    for entry in _installed(tuple(sys.path)):
        if entry in _loaded:
            continue
        _loaded.add(entry)  # before the import, which may come back here
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            raise InputError(
                f"the plugin {entry.name}={entry.value} of {package} cannot be imported: {one_line(error)}; "
                f"mend or uninstall {package}"
            ) from error
    load_modules(name for name in os.environ.get(VARIABLE, "").split(",") if name)


@functools.cache  # it reads the metadata of all packages on the path, which is only the cache's key
def _installed(path: tuple[str, ...]) -> EntryPoints:
    return entry_points(group=GROUP)


def load_modules(names: Iterable[str]) -> None:
    """Import modules by name, from the working folder too. Raises InputError if one cannot be imported."""
    names = list(names)
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there hides an installed module
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"plugins=[{','.join(names)}]: {name} cannot be imported: {one_line(error)}; name a module that python "
                "finds from here, or set PYTHONPATH"
            ) from error
