"""The command line: settings as a dataclass, errors in one line, exit statuses."""

from __future__ import annotations

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import InputError, keep_freed_memory


def run_script(run: Callable[[Any], None], settings: type, doc: str) -> None:
    """Parse the command line into `settings`, call `run` with them, and end as a good command does.

    Anything the user can mend ends in one line on stderr and exit status 2, Ctrl-C in 130 (but
    training saves its state and ends well); a traceback means a fault of this program.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no file name that can't be shown is a reason to stop
    chosen = parse_settings(settings, doc)
    keep_freed_memory()
    try:
        run(chosen)
    except (InputError, OSError) as error:
        print(f"error: {error if isinstance(error, InputError) else explained(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def explained(error: OSError) -> str:
    """What the system refused, with the file's name and a remedy where one is known."""
    full = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))
    remedies = dict.fromkeys(full, "make room, or choose another folder")
    remedies |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or choose another")
    place = f"{error.filename}: " if error.filename else ""
    remedy = f"; {remedies[error.errno]}" if error.errno in remedies else ""
    return f"{place}{error.strerror or error}{remedy}"


def number_of(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Within this context Ctrl-C and SIGTERM only set a flag; the yielded function returns whether one came.

    Outside the main thread, where Python allows no signal handlers, nothing is changed.
    """
    noted: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in numbers}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_folder(path: Path) -> None:
    """Raise InputError, before anything long begins, if `path` can't become a folder that may be written."""
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise InputError(f"{path}: {there} is no folder; choose another --save_path")
    if not os.access(there, os.W_OK):
        raise InputError(f"{path}: {there} may not be written; change its permissions, or choose another --save_path")


def setting(default: Any, description: str, choices: Collection[str] | None = None, positional: bool = False) -> Any:
    """A dataclass field that knows its --help text and, if limited, its choices.

    positional: one or more values without a flag. Where the choices are a mapping, each stands for
    values of other settings: see parse_settings.
    """
    metadata = {"help": description, "choices": choices, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def parse_settings(settings: type, doc: str, arguments: list[str] | None = None) -> Any:
    """Read a frozen dataclass of settings from the command line: a flag per field that `setting` describes.

    Booleans become --flag / --no-flag, tuples take several values; fields without a
    description are constants of the script. Flags can't be abbreviated. A choice from a mapping
    changes the defaults of other settings; what the command line names itself still wins.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    kinds = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            continue
        default, kind = field.default, kinds[field.name]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = field.metadata["help"] + ("" if default is None else f" (default: {shown})")
        options: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
        if isinstance(kind, types.UnionType):  # X | None: None is only ever the default
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        if field.metadata["positional"]:
            element = typing.get_args(kind)[0]
            parser.add_argument(field.name, type=element, nargs="+", help=field.metadata["help"])
            continue
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            options |= {"type": element, "nargs": "*", "metavar": element.__name__.upper()}
        elif field.metadata["choices"]:
            options["choices"] = field.metadata["choices"]
        else:
            options |= {"type": _path if kind is Path else kind, "metavar": kind.__name__.upper()}
        parser.add_argument(f"--{field.name}", **options)
    values = vars(parser.parse_args(arguments))
    for field in dataclasses.fields(settings):
        if isinstance(field.metadata.get("choices"), Mapping):
            parser.set_defaults(**field.metadata["choices"][values[field.name]])
    values = vars(parser.parse_args(arguments))
    return settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("is empty: name a file or a folder")
    return Path(text)
