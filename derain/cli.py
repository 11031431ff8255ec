"""The command line: settings as a dataclass, errors in one line, exit statuses."""

import argparse
import dataclasses
import errno
import os
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from utils import InputError, keep_freed_memory, usable_cpus


def run_script(run: Callable[[Any], None], settings: Any, doc: str) -> None:
    """Change `settings` by the command line, call `run` with them, and end with the right exit status.

    An error that the user can fix prints one line to stderr and exits with status 2, Ctrl-C with 130; a traceback
    means a bug.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # escape undecodable file names instead of crashing
    chosen = parse_settings(settings, doc)
    keep_freed_memory()
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    with redirect_stdout(Unbroken(sys.stdout)), redirect_stderr(Unbroken(sys.stderr)):  # type: ignore[type-var]
        try:
            try:
                run(chosen)
            finally:
                sys.stdout.flush()  # here, where it is known that its reader may have left
        except (InputError, OSError) as error:
            print(f"error: {error if isinstance(error, InputError) else explained(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fix = "when testing, give a smaller --tile; when training, a smaller --batch_size or a larger --accumulate"
            print(f"error: out of memory; {fix}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None


class Unbroken:
    """A stream whose reader may leave, such as `head` or a terminal: the work goes on, and its output goes nowhere.

    stream: None if the process was started with it closed.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115, for the process's life

    def write(self, text: str) -> int:
        return self._unbroken(lambda: self.stream.write(text)) or len(text)

    def flush(self) -> None:
        self._unbroken(self.stream.flush)

    def _unbroken(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL, errno.EIO):  # on Windows EINVAL; of a terminal EIO
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or an allocator of torch, not all of which have a type of their own, ran out of memory."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")  # of Linux, Windows and MPS
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def explained(error: OSError) -> str:
    """Return the file's name, the system's message, and the fix where one is known."""
    full = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))
    fixes = dict.fromkeys(full, "; free some space, or choose another folder")
    fixes |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "; change its permissions, or choose another")
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}{fixes.get(error.errno, '')}"


class Progress:
    """Shows lines of progress: one below the other, in a notebook each in place of the one before."""

    def __init__(self) -> None:
        self.shown = None
        if type(getattr(sys.stdout, "stream", sys.stdout)).__module__.startswith("ipykernel"):  # within Unbroken: %run
            from IPython.display import display

            self.shown = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, line: str) -> None:
        if self.shown is None:
            print(line, flush=True)
        else:
            self.shown.update({"text/plain": line}, raw=True)


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], int]]:
    """Within this context signals that end a process are only noted; the yielded function returns the last, or 0.

    They are Ctrl-C, SIGTERM, SIGHUP (a terminal closes) and SIGUSR1 (a cluster is about to end the job), but for those
    that are ignored, as SIGHUP under nohup. Outside the main thread, where Python allows no handlers, none is noted.
    """
    noted: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows lacks two of them
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in heeded}
    try:
        yield lambda: noted[-1] if noted else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_folder(path: Path, flag: str = "--save_path") -> None:
    """Fail early if `path`, the value of a flag, is not, and cannot become, a writable folder."""
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise InputError(f"{path}: {there} is not a folder; choose another {flag}")
    if not os.access(there, os.W_OK):
        raise InputError(f"{path}: {there} is not writable; change its permissions, or choose another {flag}")


def setting(
    default: Any, description: str, choices: Collection[str] = (), positional: bool = False, alias: str = ""
) -> Any:
    """Return a dataclass field with its --help text and, if limited, its choices.

    positional: one or more values without a flag. If the choices are a mapping, each stands for
    values of other settings: see parse_settings. alias: a second name of the flag.
    """
    metadata = {"help": description, "choices": choices, "positional": positional, "alias": alias}
    return dataclasses.field(default=default, metadata=metadata)


def text_to_paths(settings: Any) -> None:
    """Make paths of the text that a program may have given for them. settings: a frozen dataclass."""
    kinds = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and Path in (kinds[field.name], *typing.get_args(kinds[field.name])):
            object.__setattr__(settings, field.name, Path(value))


def parse_settings(settings: Any, doc: str, arguments: list[str] | None = None) -> Any:
    """Return a copy of `settings`, a frozen dataclass, as changed by the command line.

    Every field that `setting` describes is a flag, its value the default. Booleans become --flag / --no-flag, tuples
    take several values. Flags can't be abbreviated. A choice from a mapping changes the defaults of other
    settings; what the command line names itself still wins.
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout, allow_abbrev=False)
    kinds, recipes = typing.get_type_hints(type(settings)), {}
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            continue
        names, options = _argument(field, kinds[field.name], getattr(settings, field.name))
        parser.add_argument(*names, **options)
        if isinstance(field.metadata["choices"], Mapping):
            recipes[field.name] = field.metadata["choices"]
    values = vars(parser.parse_args(arguments))
    for name, choices in recipes.items():
        parser.set_defaults(**choices[values[name]])
    values = vars(parser.parse_args(arguments))
    return dataclasses.replace(settings, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _argument(field: dataclasses.Field, kind: Any, default: Any) -> tuple[list[str], dict[str, Any]]:
    """Return names and options of the argument for one field."""
    if isinstance(kind, types.UnionType):  # X | None: None is only ever the default
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    several = typing.get_origin(kind) is tuple
    element = typing.get_args(kind)[0] if several else kind
    if field.metadata["positional"]:
        return [field.name], {"type": element, "nargs": "*", "help": field.metadata["help"]}
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = field.metadata["help"] + ("" if default in (None, ()) else f" (default: {shown})")
    options: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif several:
        options |= {"type": _path if element is Path else element, "nargs": "*", "metavar": element.__name__.upper()}
    elif field.metadata["choices"]:
        options["choices"] = field.metadata["choices"]
    else:
        options |= {"type": _path if kind is Path else kind, "metavar": kind.__name__.upper()}
    return [f"--{name}" for name in (field.name, field.metadata["alias"]) if name], options


def _path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("is empty: name a file or a folder")
    return Path(text)
