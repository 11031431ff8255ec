"""The command line: a dataclass of settings becomes flags, an error one line and a status."""

import argparse
import dataclasses
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils import InputError, keep_freed_memory


def run_script(run: Callable[[Any], None], settings: Any, doc: str) -> None:
    """Change `settings` by the command line and run.

    Exits with status 2 and one line after an error that the user can fix, with 130 after Ctrl-C,
    and with 1 if the reader of the output has left, as `head` does. A traceback means a bug.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a notebook's, or closed
            stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    chosen = parse_settings(settings, doc)
    keep_freed_memory()
    try:
        run(chosen)
        print(end="", flush=True)
        return
    except BrokenPipeError:
        status, line = 1, ""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
    except KeyboardInterrupt:
        status, line = 130, "interrupted\n"
    except InputError as error:
        status, line = 2, f"error: {error}\n"
    except OSError as error:
        status, line = 2, f"error: {error.filename or 'system'}: {error.strerror or error}\n"
    except (MemoryError, RuntimeError) as error:
        if not re.search("MemoryError|(allocate|enough|out of) memory", repr(error)):
            raise
        status, line = 2, "error: out of memory; use a smaller --tile or --batch_size\n"
    print(line, end="", file=sys.stderr)
    raise SystemExit(status)


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], int]]:
    """Note the signals that end a process. Yields a function that returns the last one, or 0.

    They are Ctrl-C, SIGTERM, SIGHUP (a terminal closes) and SIGUSR1 (a cluster ends the job soon).
    Ignored ones, such as SIGHUP under nohup, stay ignored.
    """
    noted = [0]
    handlers: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        # Windows lacks two of them, and only the main thread may set handlers.
        with suppress(AttributeError, ValueError):
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:
                handlers[number] = signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield lambda: noted[-1]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def check_folder(path: Path, flag: str = "--save_path") -> None:
    """Fail early if `path`, the value of a flag, is not, and cannot become, a writable folder."""
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path}: {existing} is not a writable folder; choose another {flag}")


def setting(
    default: Any, help: str, choices: Collection = (), positional: bool = False, alias: str = ""
) -> Any:
    """Return a dataclass field with its --help text and, if limited, its choices.

    A mapping as choices holds recipes: each choice stands for the defaults of other settings.
    positional: a value without a flag. alias: a second name of the flag.
    """
    metadata = {"help": help, "choices": choices, "positional": positional, "alias": alias}
    return dataclasses.field(default=default, metadata=metadata)


def text_to_paths(settings: Any) -> None:
    """Convert text that a program gave for paths. settings: a frozen dataclass."""
    for name, kind in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, str) and Path in (kind, *typing.get_args(kind)):
            object.__setattr__(settings, name, Path(value))


def parse_settings(settings: Any, doc: str, arguments: list[str] | None = None) -> Any:
    """Return `settings`, a frozen dataclass, as changed by the command line.

    Every field made by `setting` is a flag. Booleans become --flag / --no-flag, tuples take several
    values, and flags can't be abbreviated. A flag takes precedence over a recipe.
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout, allow_abbrev=False)
    kinds = typing.get_type_hints(type(settings))
    fields = [field for field in dataclasses.fields(settings) if field.metadata]
    for field in fields:
        _add_argument(parser, field, kinds[field.name], getattr(settings, field.name))
    chosen = parser.parse_args(arguments)
    for field in fields:
        if isinstance(field.metadata["choices"], Mapping):
            recipe = field.metadata["choices"][getattr(chosen, field.name)]
            parser.set_defaults(**recipe)
    values = vars(parser.parse_args(arguments))
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    return dataclasses.replace(settings, **values)


def _add_argument(parser: Any, field: dataclasses.Field, kind: Any, default: Any) -> None:
    """Add the flag of one field. kind: its type; X | None counts as X."""
    text = field.metadata["help"].replace("%", "%%")
    if default not in (None, (), ""):
        text += " (default: %(default)s)"
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if kind is bool:
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    elif typing.get_origin(kind) is tuple:
        options = {"type": typing.get_args(kind)[0], "nargs": "*"}
    else:
        options = {"type": kind, "choices": field.metadata["choices"] or None}
    if options.get("type") is Path:
        options["type"] = _path
    if field.metadata["positional"]:
        parser.add_argument(field.name, help=text, **options | {"nargs": "*"})
        return
    names = [f"--{name}" for name in (field.name, field.metadata["alias"]) if name]
    parser.add_argument(*names, default=default, help=text, **options)


def _path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("is empty: name a file or a folder")
    return Path(text)
