"""Files that are complete or not there, and folders that one process at a time writes to."""

from __future__ import annotations

import codecs
import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from mlmd_calc.errors import ConfigError, ModelFileError

try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

LOCK_FILE: Final = ".lock"
_PART: Final = ".part"
COMPRESSED: Final = (".gz", ".bz2", ".xz")
"""Endings of texts that are decompressed while they are read."""


_TEXT_EXPANDS: Final = 8
"""How many times its size a text takes in memory while it is read, about."""


def refuse_huge(path: Path) -> None:
    """Refuse a text file that would not fit into the memory of this machine.

    Raises
    ------
    ModelFileError
        If it would not.
    """
    size, memory = path.stat().st_size, _memory()
    if memory is not None and size > memory // _TEXT_EXPANDS:
        raise ModelFileError(
            f"{path} has {size / 2**30:.1f} GiB, too much to read as text with "
            f"{memory / 2**30:.0f} GiB of memory; split it, or give another file"
        )


def refuse_capital_ending(path: Path) -> None:
    """Refuse a compressed file whose ending does not say so to ASE, which knows small letters.

    Raises
    ------
    ModelFileError
        If it ends in .GZ or the like.
    """
    small = path.suffix.lower()
    if small in COMPRESSED and path.suffix != small:
        raise ModelFileError(
            f"{path} ends in {path.suffix}, but compressed files are known by small letters; "
            f"rename it to {path.with_suffix(small).name}"
        )


def bare_suffix(path: Path) -> str:
    """Return the ending of a file in small letters, without that of a compression."""
    return next((s for s in map(str.lower, reversed(path.suffixes)) if s not in COMPRESSED), "")


def refuse_byte_order_mark(path: Path) -> None:
    """Refuse a text that is not plain UTF-8, as some editors on Windows save it.

    Raises
    ------
    ModelFileError
        If it begins with a byte-order mark.
    """
    with path.open("rb") as file:
        begin = file.read(len(codecs.BOM_UTF8))
    if begin.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ModelFileError(
            f"{path} begins with a byte-order mark, as UTF-16 and some UTF-8 do; save it as plain "
            "UTF-8 without one"
        )


def refuse_huge_array(path: Path, size: int) -> None:
    """Refuse an array of a file that would not fit into the memory of this machine twice.

    Parameters
    ----------
    path
        The file.
    size
        Of the array in bytes.

    Raises
    ------
    ModelFileError
        If it would not.
    """
    memory = _memory()
    if memory is not None and 2 * size > memory:
        raise ModelFileError(
            f"the frames of {path} take {size / 2**30:,.1f} GiB, too much for "
            f"{memory / 2**30:.0f} GiB of memory; take fewer of them, or give another file"
        )


def _memory() -> int | None:
    """Bytes of this machine, or None where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its place, and put it there in one go when it is complete.

    A process that is killed, or finds the disk full, leaves the older file as it was.

    Yields
    ------
    Path
        What to write instead: a hidden file that readers of the folder pass over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error that names no file, as where a disk is full, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one go; see :func:`replacing` and :func:`json_text`."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(content) + "\n", encoding="utf-8")


def json_text(content: Any) -> str:
    """Return JSON that every reader understands: null for numbers that are not finite."""
    return json.dumps(_finite(content), indent=1, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read ({error}); bring back the file") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds {str(content)[:40]!r}, not an object of JSON")
    return content


class FolderLock:
    """The right to write into a folder, which ends with :meth:`release` or with the process.

    As a context manager it ends with the block.

    Raises
    ------
    ConfigError
        If another process, or another object of this process, has it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK_FILE).open("ab")
        # Also where the object is dropped, as that of a run that is not continued is.
        self._close = weakref.finalize(self, self._file.close)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise ConfigError(
                f"{folder} is being written to by another process, or by a run of this one that "
                "was not closed; wait until it has ended, close it, or choose another folder"
            ) from error
        except OSError:
            pass  # a file system without locks
        # Left by processes that were killed.
        for part in folder.glob(f".*{_PART}"):
            part.unlink(missing_ok=True)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @contextmanager
    def kept(self) -> Iterator[FolderLock]:
        """Release it if the block fails, and keep it otherwise."""
        try:
            yield self
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others write."""
        # The file stays: another process might lock it between opening and removing it.
        self._close()
