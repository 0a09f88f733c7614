"""How every command ends: success, or one sentence and an exit status that says what happened.

A signal ends a command with 128 plus its number (SIGINT 130, SIGTERM 143, SIGHUP 129). Until a
command says otherwise there is nothing to save, so that it ends at once, even amid imports. One
that has something to finish asks for time with :func:`stop_on_signal`, and one that has processes
to end with :func:`raise_on_signal`. What a user should do next is said by :func:`advise`.

Imports nothing beyond the standard library, so that it is there before anything can fail.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Final, NoReturn

TRACEBACK_VARIABLE: Final = "MLMD_TRACEBACK"
"""Environment variable; if it is set, errors are shown with their traceback."""

_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_NOTHING: Final = "nothing was written; give the command again"

_ASCII: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{"Å": "A", "±": "+-", "×": "x", "−": "-", "–": "-", "…": "...", "→": "->", "≥": ">="},
        **{"≤": "<=", "²": "^2", "³": "^3", "λ": "lambda", "Δ": "d", "·": "*", "≈": "~", "µ": "u"},
    }
)
"""What to write on a terminal that does not know a character; "?" for all others."""

_REMEDIES: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.ENOSPC: "make space on that disk",
        errno.EDQUOT: "make space in that quota",
        errno.EROFS: "choose a place that can be written to",
        errno.EACCES: "choose another place, or change its permissions",
        errno.EPERM: "choose another place, or change its permissions",
        errno.ENOENT: "it is not there, or no longer: bring it back, or choose another place",
        errno.EISDIR: "give a file",
        errno.ENOTDIR: "give a folder",
        errno.EEXIST: "choose another place, or remove it",
        errno.EMFILE: "close other files, or raise the limit with ulimit -n",
        errno.ENOMEM: "use a machine with more memory, or ask for less",
    }
)

_advice = _NOTHING


class Stopped(BaseException):
    """A signal has asked the command to end; raised inside :func:`raise_on_signal`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopRequest:
    """Whether a signal has asked to stop; call it to find out.

    Attributes
    ----------
    number
        The signal, 0 for none.
    """

    number: int = 0

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return self.number != 0


def advise(advice: str) -> None:
    """Set what a user is told whose command ends early from here on.

    Parameters
    ----------
    advice
        What is kept, and how to go on; ends a sentence.
    """
    global _advice
    _advice = advice


def run_command(command: Callable[[], Any]) -> NoReturn:
    """Run a command and end the process as this module describes.

    Parameters
    ----------
    command
        Ends by returning, with SystemExit, or with an exception.
    """
    _handle(_end_at_once)
    _tolerate_ascii_terminals()
    warnings.formatwarning = _warning
    try:
        command()
    except Stopped as stop:
        sys.exit(end_of(stop.number))
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        _say(_sentence(error))
        sys.exit(1)
    sys.exit(0)


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Show a warning of ours as a sentence, and one of other packages with its place."""
    if issubclass(category, UserWarning) and category.__module__ == "builtins":
        return f"mlmd: warning: {message}\n"
    return f"mlmd: {category.__name__} ({filename}:{lineno}): {message}\n"


def end_of(number: int) -> int:
    """Say that a signal has ended the command and what to do next; return the exit status."""
    _say(f"stopped by {signal.Signals(number).name}; {_advice}")
    return 128 + number


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first signal into a request to stop; a second one acts as before."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        _leave_dead_terminal()
        restore()

    restore = _handle(note)
    try:
        yield request
    finally:
        restore()


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise :class:`Stopped` on a signal, so that what was begun is ended in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        _leave_dead_terminal()
        restore()
        raise Stopped(number)

    restore = _handle(stop)
    try:
        yield
    finally:
        restore()


def _handle(handler: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    """Install a handler; return a function that brings back those before.

    A hangup that is ignored, as under nohup, stays ignored.
    """
    hangup = getattr(signal, "SIGHUP", None)
    before: dict[int, Any] = {}
    for number in _SIGNALS:
        if number != hangup or signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    # Raising could be taken for the failure of an import, or be lost in one.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    status = end_of(number)
    os._exit(status)


def _sentence(error: Exception) -> str:
    """Return what to tell a user of an error."""
    # Only now, as this module is imported before anything else.
    from mlmd_calc.errors import MLMDError

    if isinstance(error, MLMDError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        folder = Path(os.fsdecode(error.filename or ".")).parent
        if error.errno == errno.ENOENT and not folder.is_dir():
            return (
                f"the folder '{folder}' is not there, or no longer; if it was removed while the "
                "command was at work, what was in it is lost: begin again"
            )
        where = f": {os.fspath(error.filename)!r}" if error.filename else ""
        remedy = _REMEDIES.get(error.errno, "see to that place")
        return f"{error.strerror}{where}; {remedy}. {_advice[0].upper()}{_advice[1:]}"
    if isinstance(error, MemoryError):
        return f"there is too little memory ({error}); ask for less, or give a smaller file"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({place.name}, line {place.lineno}). This was not "
        f"foreseen; please report it with what {TRACEBACK_VARIABLE}=1 shows. For now: {_advice}"
    )


def _say(sentence: str) -> None:
    """Write a sentence to stderr, whatever state it is in."""
    # A progress bar hides the cursor.
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""
    text = f"{show_cursor}mlmd: {sentence}\n"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.write(2, text.encode(getattr(sys.stderr, "encoding", None) or "ascii", "mlmd"))


def _tolerate_ascii_terminals() -> None:
    """Let output in characters that a terminal does not know be spelled otherwise."""

    def spell(error: UnicodeError) -> tuple[str | bytes, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        unknown = error.object[error.start : error.end]
        return "".join(_ASCII.get(character, "?") for character in unknown), error.end

    codecs.register_error("mlmd", spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="mlmd")


def _leave_dead_terminal() -> None:
    """Write to nowhere where the terminal is gone, so that its errors end nothing."""
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            gone = stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor)
            if gone:
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
