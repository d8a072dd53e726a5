# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A user's own modules: a file or an installed module that adds a kind of media or a converter when imported."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


# Modules of the package that only some models need, by the name under which they travel beside these as a user's do:
# what to import, and the kind of media that it registers.
SHIPPED = {"device_status": ("xllm.device.device_status", "status")}


def import_modules(names: Iterable[str]) -> list[ModuleType]:
    """Imports each module once; what it registers is known from then on.

    A file is imported under its stem, and its folder joins `sys.path`: the processes of a DataLoader, which
    get `sys.path` and the names of classes, find the same classes by the same name.

    Args:
        names (`Iterable[str]`): dotted names of installed modules, or paths of `.py` files.

    Raises:
        ValueError: no such module or file, a file name that is no module name or that another module has already, or
            an error while it is imported. The message names the module.
    """
    return [_import_file(Path(name)) if name.endswith(".py") else _import(name, name) for name in names]


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"module {path}: no such file")
    if not path.stem.isidentifier():
        raise ValueError(f"module {path}: a module's name has letters, digits and _ only; rename the file")
    if path.stem not in sys.modules and str(path.parent) not in sys.path:
        # `python -m` looks in the current folder first; a file of the same name there is another module.
        is_hidden = Path(path.name).exists()
        sys.path.insert(0 if is_hidden else len(sys.path), str(path.parent))
        importlib.invalidate_caches()
    module = _import(path.stem, str(path))
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise ValueError(
            f"module {path}: the name {path.stem} belongs to {found or 'a built-in module'}; rename the file"
        )
    return module


def _import(name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise ValueError(
                f"module {shown}: there is no such module; a file is given by its path, {name}.py"
            ) from error
        raise ValueError(f"module {shown}: it needs {error.name}, which is not installed") from error
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"module {shown}: {type(error).__name__} while it was imported: {error}") from error
