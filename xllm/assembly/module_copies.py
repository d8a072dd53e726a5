# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Copies of a user's modules beside a checkpoint.

A module that registers a converter or a kind of media travels with the checkpoints that use it. The copy lies in one
flat folder with our files, so `from xllm.modeling_xllm.converters import X` becomes `from .converters import X`, and
`from xllm import X` likewise.
"""

import ast
import hashlib
import importlib.metadata
import re
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_imports
from transformers.utils import HF_MODULES_CACHE, logging

import xllm
import xllm.modeling_xllm
import xllm.processing
from xllm.assembly.modules import SHIPPED
from xllm.modeling_xllm.converters import CONVERTERS
from xllm.modeling_xllm.weight_files import read_json, write_json
from xllm.processing.media_kinds import MEDIA_KINDS


logger = logging.get_logger(__name__)


class ModuleCopyError(ValueError):
    """A module cannot travel with a checkpoint."""


def flat_files() -> dict[str, Path]:
    """Our own modules that travel, by name: the flat files of `modeling_xllm` and `processing`."""
    folders = [Path(package.__path__[0]) for package in (xllm.modeling_xllm, xllm.processing)]
    found = [path for folder in folders for path in folder.glob("*.py") if path.name != "__init__.py"]
    return {path.stem: path for path in sorted(found, key=lambda path: path.name)}


def copy_module(file: str | Path, folder: str | Path) -> str:
    """Write the copy of the module in `file` into `folder`; returns its name, the stem of both files.

    Raises:
        ModuleCopyError: the module is a package, has the name of one of our files, or imports what does not travel.
    """
    file = Path(file)
    if file.name == "__init__.py":
        raise ModuleCopyError(f"{file}: a package cannot travel with a checkpoint; put the classes into one file")
    if file.stem in flat_files() or file.stem in sys.stdlib_module_names:
        raise ModuleCopyError(f"{file}: a file of ours or of Python's library is called {file.name}; rename yours")
    Path(folder, file.name).write_text(travelling_text(file), encoding="utf-8")
    return file.stem


def travelling_text(file: Path) -> str:
    """Source of the module in `file` as it is in a flat folder with ours; raises what `copy_module` raises."""
    text = file.read_text(encoding="utf-8")
    edits = []
    for node in ast.walk(ast.parse(text, str(file))):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "xllm" for alias in node.names):
            raise _refused(file, node, "write `from xllm.... import Name`")
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "xllm"):
            edits.append((node, _relative_imports(file, node)))
    # Libraries can be installed anywhere; a user's other modules cannot.
    known = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), "xllm"}
    if private := [name for name in get_imports(file) if name not in known]:
        raise ModuleCopyError(f"{file}: it imports {private[0]}, which is not installed; only a single file travels")
    lines = text.splitlines(keepends=True)
    for node, statements in sorted(edits, key=lambda edit: -edit[0].lineno):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        before = lines[first].encode()[: node.col_offset].decode()  # ast counts bytes
        after = lines[last].encode()[node.end_col_offset :].decode()
        indent = before[: len(before) - len(before.lstrip())]
        lines[first : last + 1] = [before + f"\n{indent}".join(statements) + after]
    return "".join(lines)


def _relative_imports(file: Path, node: ast.ImportFrom) -> list[str]:
    """`node`, an import of ours, as imports of siblings."""
    ours, parts = flat_files(), (node.module or "").split(".")
    if node.level == 1 and parts[0] in ours:  # a copy is copied
        return [ast.unparse(node)]
    if node.level:
        raise _refused(file, node, "only a single file travels")
    by_module: dict[str, list[ast.alias]] = {}
    for alias in node.names:
        target = parts[1:] or xllm.public_names().get(alias.name, "").split(".")
        if len(target) != 2 or target[0] not in ("modeling_xllm", "processing") or target[1] not in ours:
            raise _refused(file, node, f"{alias.name} does not travel with a checkpoint")
        by_module.setdefault(target[1], []).append(alias)
    return [ast.unparse(ast.ImportFrom(module, names, 1)) for module, names in by_module.items()]


def _refused(file: Path, node: ast.stmt, reason: str) -> ModuleCopyError:
    return ModuleCopyError(f"{file}, line {node.lineno}: `{ast.unparse(node)}`: {reason}")


def native_module(copy: str | Path) -> Path:
    """The `copy` beside a checkpoint as a module that imports this package: a file in transformers' cache."""
    homes = {name: f"xllm.{path.parent.name}.{name}" for name, path in flat_files().items()}
    text = Path(copy).read_text(encoding="utf-8")
    sibling = re.compile(r"^(\s*from\s+)\.(\w+)(?=\s+import\b)", flags=re.M)
    text = sibling.sub(lambda found: found[1] + homes.get(found[2], f".{found[2]}"), text)
    folder = Path(HF_MODULES_CACHE, "xllm_modules", hashlib.sha256(text.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(copy).name
    path.write_text(text, encoding="utf-8")
    return path


def user_modules(folder: Path, config: dict, processor: dict) -> list[Path]:
    """Files of the user's modules that a checkpoint needs: named in its configs, or by its converters and kinds.

    Raises:
        ModuleCopyError: a module that is named is neither imported nor beside the checkpoint, or a class is defined in
            a notebook or at the prompt, where there is no file to copy.
    """
    kinds = [MEDIA_KINDS[name] for name in processor.get("readers", ()) if name in MEDIA_KINDS]
    names = {row.get("converter") for row in (config.get("modalities") or {}).values()}
    classes: list = [CONVERTERS[name] for name in sorted(names & CONVERTERS.keys())]
    classes += [item for kind in kinds for item in (kind.reader_class, kind.load, kind.read)]
    found: dict[str, Path] = {}
    for item in classes:
        name = getattr(item, "__module__", None) or "builtins"
        shipped = any(name == home for home, _ in SHIPPED.values())
        if not shipped and name.split(".")[0] in (
            "xllm", "transformers", "transformers_modules", "builtins", "functools",
        ):  # fmt: skip
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if name == "__main__" or file is None:
            raise ModuleCopyError(
                f"{item.__name__} is defined in {name}, not in a file that can be copied: move it to one"
            )
        found[Path(file).stem] = Path(file)
    for name in [*config.get("modules", ()), *processor.get("modules", ())]:
        beside = folder / f"{name}.py"
        imported = getattr(sys.modules.get(name), "__file__", None)
        if name not in found and not beside.is_file() and imported is None:
            raise ModuleCopyError(f"{beside}: no such file; give the module that config.json names with --module")
        found.setdefault(name, beside if beside.is_file() else Path(str(imported)))
    return list(found.values())


def copy_user_modules(folder: str | Path) -> None:
    """Copy the user's modules that the checkpoint in `folder` uses beside it, and name them in its configs.

    `save_pretrained` of model and processor ends with this. A module that cannot travel is a warning: the weights are
    written by then, and a run should not end for it. `export_code` treats it as an error.
    """
    folder = Path(folder)
    configs = {name: read_json(folder / name) for name in ("config.json", "processor_config.json")}
    try:
        names = [copy_module(file, folder) for file in user_modules(folder, *configs.values())]
    except ModuleCopyError as error:
        logger.warning(
            f"{folder} is saved without a module that opening it needs (import it first, or --module): {error}"
        )
        return
    for name, config in configs.items():
        if names and config:
            write_json(folder / name, {**config, "modules": names})
