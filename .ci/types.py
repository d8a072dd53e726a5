# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""mypy over the package as it is installed: `python .ci/types.py [--update]`.

Folders are mapped as setup.py maps them, by links. What mypy found when it was introduced is counted per file in
types_left.json; more than that fails, with all errors of the file. `--update` writes down where the numbers shrank.

Left out is one family of errors: transformers declares LongTensor, BoolTensor and FloatTensor, and so do we, for the
reader; torch declares every result as Tensor, which to mypy is not one of them.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
LEFT = Path(__file__).with_name("types_left.json")
ERROR = re.compile(r"^build/types/xllm/(?P<file>[^:]+):\d+: error: (?P<text>.*)$")
TENSOR_KIND = re.compile(
    r'"[^"]*\bTensor\b[^"]*"[,;)].*(?:expected|variable has type) "[^"]*(?:Long|Bool|Float|Int)Tensor'
)


def link_packages(folder: Path) -> None:
    """`xllm/` and, inside it, the other top-level folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    packages = [ROOT / name for name in ("modeling_xllm", "processing", "training", "hub_cards")]
    for path in [*(ROOT / "xllm").iterdir(), *packages]:
        if path.name != "__pycache__":
            (folder / path.name).symlink_to(path)


def main() -> int:
    """Run mypy; 1 where a file has more errors than are written down."""
    link_packages(ROOT / "build" / "types" / "xllm")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "xllm"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": "build/types"},
        capture_output=True,
        text=True,
    )
    if run.returncode not in (0, 1) or run.stderr:
        sys.stderr.write(run.stdout + run.stderr)
        return 1
    errors = defaultdict(list)
    for line in run.stdout.splitlines():
        if (found := ERROR.match(line)) and not TENSOR_KIND.search(found["text"]):
            errors[found["file"]].append(line.removeprefix("build/types/xllm/"))
    left = json.loads(LEFT.read_text(encoding="utf-8"))
    worse = {file: lines for file, lines in errors.items() if len(lines) > left.get(file, 0)}
    if "--update" in sys.argv:
        numbers = {file: min(number, len(errors[file])) for file, number in left.items() if file in errors}
        LEFT.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    for file, lines in worse.items():
        sys.stderr.write(f"{file}: {len(lines)} errors, {left.get(file, 0)} were there before\n")
        sys.stderr.write("".join(f"  {line}\n" for line in lines))
    total = sum(map(len, errors.values()))
    sys.stdout.write(f"types: {total} errors; {sum(left.values())} are written down in {LEFT.name}\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
