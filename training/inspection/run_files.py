# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Reads the files of a folder that others write: never one outside of it, never more than was asked for, never a lock.

What is half-written, damaged, gone or another's is no error here: the last whole value stands, and what was wrong is
kept in `RunFiles.problems`, by name.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any


MOST_BYTES = 32 << 20  # of a JSON file
MOST_AT_ONCE = 8 << 20  # that a look at a growing file reads
MOST_ENTRIES = 20_000  # of a folder
REMEMBERED = 64  # bytes before the place where a growing file is read on
MOST_PROBLEMS = 50

try:
    import fcntl
    import struct
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class RunFiles:
    """The files of `root`. A name is relative to it, with slashes; links that lead out of it are not followed."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root).expanduser().resolve()
        self.problems: dict[str, str] = {}
        self._values: dict[str, tuple[tuple, Any]] = {}
        self._locks: dict[str, int] = {}

    def exists(self) -> bool:
        """Whether the folder is there."""
        return self.root.is_dir()

    def open(self, name: str) -> int | None:
        """A descriptor of a plain file below the root, to be closed by the caller; `None` if there is none."""
        try:
            path = Path(self.root, name).resolve(strict=True)
            if not path.is_relative_to(self.root):
                self._note(name, "leads out of the folder; not opened")
                return None
            # A pipe must not block, and a name that has become a link in the meantime is not followed.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RuntimeError, ValueError) as error:
            self._note(name, f"cannot be read: {error}")
            return None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            return None
        return handle

    def read(self, name: str, most: int = MOST_BYTES) -> bytes | None:
        """A whole file; `None` if there is none, or a larger one."""
        if (handle := self.open(name)) is None:
            return None
        with os.fdopen(handle, "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            self._note(name, f"is larger than {most:,} bytes; not read")
            return None
        return content

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object, read again when its file has changed; empty if there is none. While it is half-written the
        last whole one stands.
        """
        if (now := self._signature(name)) is None:
            self._values.pop(name, None)
            self.problems.pop(name, None)
            return {}
        known = self._values.get(name)
        if known is not None and known[0] == now:
            return known[1]
        value: Any = None
        if (content := self.read(name)) is not None:
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                self._note(name, f"is half-written or damaged: {error}")
        if not isinstance(value, dict):
            return {} if known is None else known[1]
        self.problems.pop(name, None)
        self._values[name] = now, value
        return value

    def forget_gone(self) -> None:
        """Forget what was read of files that are there no longer."""
        for name in [name for name in {*self._values, *self.problems} if self._signature(name) is None]:
            self._values.pop(name, None)
            self.problems.pop(name, None)

    def folders(self, name: str = "") -> list[str]:
        """The folders in a folder, in the order of their names."""
        return sorted(entry.name for entry in self._scan(name) if self._is_dir(entry))

    def files(self, name: str = "") -> list[str]:
        """The names of the files in a folder, in order; links among them."""
        return sorted(entry.name for entry in self._scan(name) if not self._is_dir(entry))

    def size(self, name: str) -> int | None:
        """Bytes of a file; `None` if there is none."""
        found = self._signature(name)
        return None if found is None else found[1]

    def changed(self, name: str) -> float | None:
        """When a file was written, in seconds since 1970; `None` if there is none."""
        found = self._signature(name)
        return None if found is None else found[0] / 1e9

    def relative(self, path: str) -> str | None:
        """The name of a file that is given by its path, if it lies below the root."""
        try:
            found = Path(self.root, path).resolve()
            return PurePosixPath(found.relative_to(self.root)).as_posix()
        except (OSError, RuntimeError, ValueError):
            return None

    def is_locked(self, name: str) -> bool:
        """Whether a process holds the lock that a run has on its stage's folder. Asked without taking it; the file
        stays open, since a process that closes one gives up its own locks on it.
        """
        path = Path(self.root, name)
        try:
            there = os.lstat(path)
            handle = self._locks.get(name)
            if handle is not None and os.fstat(handle).st_ino != there.st_ino:
                handle = None  # the lock of a later run; the file of the earlier one is gone
            if handle is None and fcntl is not None and stat.S_ISREG(there.st_mode):
                handle = self._locks[name] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if handle is None:
                return False
            asked = fcntl.fcntl(handle, fcntl.F_GETLK, _WRITE_LOCK)
        except OSError:
            return False
        return _kind_of_lock(asked) != fcntl.F_UNLCK

    def _signature(self, name: str) -> tuple | None:
        try:
            found = Path(self.root, name).stat()
        except (OSError, RuntimeError, ValueError):
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _scan(self, name: str) -> Iterator[os.DirEntry]:
        folder = Path(self.root, name)
        if name and (folder.is_symlink() or not folder.resolve().is_relative_to(self.root)):
            return
        try:
            with os.scandir(folder) as entries:
                for number, entry in enumerate(entries):
                    if number == MOST_ENTRIES:
                        self._note(name or ".", f"holds over {MOST_ENTRIES:,} files; the rest is not looked at")
                        return
                    yield entry
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._note(name or ".", f"cannot be read: {error}")

    @staticmethod
    def _is_dir(entry: os.DirEntry) -> bool:
        try:
            return entry.is_dir(follow_symlinks=False)
        except OSError:
            return False

    def _note(self, name: str, problem: str) -> None:
        if name in self.problems or len(self.problems) < MOST_PROBLEMS:
            self.problems[name] = problem


class Tail:
    """A file that grows: each look gives the lines that were written since the last one.

    Args:
        files, name: whose, and which.
    """

    def __init__(self, files: RunFiles, name: str):
        self.files, self.name = files, name
        self.offset = 0
        self._inode, self._before, self._rest = 0, b"", b""

    def look(self) -> tuple[bool, list[tuple[int, bytes]]]:
        """Whether it was begun anew (what it said before no longer holds), and (place, line) of what is new, at most
        8 MiB; a last line without its end waits for it.
        """
        if (handle := self.files.open(self.name)) is None:
            begun = self._inode != 0
            self.offset, self._inode, self._before, self._rest = 0, 0, b"", b""
            return begun, []
        with os.fdopen(handle, "rb") as file:
            begun = self._begin(file)
            file.seek(self.offset)
            content = file.read(MOST_AT_ONCE)
        if not content:
            return begun, []
        place = self.offset - len(self._rest)
        self.offset += len(content)
        self._before = (self._before + content)[-REMEMBERED:]
        *lines, self._rest = (self._rest + content).split(b"\n")
        found = []
        for line in lines:
            found.append((place, line))
            place += len(line) + 1
        return begun, found

    def _begin(self, file: Any) -> bool:
        """Whether this is another file than before, or one that was written anew from its beginning."""
        now = os.fstat(file.fileno())
        same = now.st_ino == self._inode and now.st_size >= self.offset
        if same and self._before:
            file.seek(self.offset - len(self._before))
            same = file.read(len(self._before)) == self._before
        if same:
            return False
        begun, self._inode = self._inode != 0, now.st_ino
        self.offset, self._before, self._rest = 0, b"", b""
        return begun


def _lock_question() -> bytes:
    """A lock of the whole file for writing, as `fcntl` wants it."""
    if fcntl is None:
        return b""
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _kind_of_lock(answer: bytes) -> int:
    return struct.unpack_from("h", answer)[0]


_WRITE_LOCK = _lock_question()


__all__ = ["RunFiles", "Tail"]
