"""Turn a dataclass of settings into flags, and an error into one line and an exit status."""

import argparse
import dataclasses
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils import InputError, keep_freed_memory


def run_script(run: Callable[[Any], None], settings: Any, doc: str) -> None:
    """Apply the command line to `settings` and run.

    Exits with status 2 and one line after an error that the user can fix, with 130 after Ctrl-C,
    and with 1 if the output pipe is closed, as by `head`. A traceback means a bug.
    """
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, closed by 2>&-
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a notebook's, or a closed stdout
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    chosen = parse_settings(settings, doc)
    keep_freed_memory()
    try:
        run(chosen)
        print(end="", flush=True)
        return
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        status, line = 130, "interrupted"
    except InputError as error:
        status, line = 2, f"error: {error}"
    except ModuleNotFoundError as error:  # modules that few need are imported where they are used
        status, line = 2, f"error: needs {error.name}: pip install -r requirements-extra.txt"
    except OSError as error:
        status, line = 2, f"error: {error.filename or 'system'}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        if not re.search("MemoryError|(allocate|enough|out of) memory", repr(error)):
            raise
        status, line = 2, "error: out of memory; use a smaller --tile, --batch_size or --stages"
    print(line, file=sys.stderr)
    raise SystemExit(status)


def check_folder(path: Path, flag: str = "--save_path") -> None:
    """Fail early if `path`, the value of a flag, is not, and cannot become, a writable folder."""
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path}: {existing} is not a writable folder; choose another {flag}")


def setting(default: Any, help: str, choices: Collection = (), names: Collection = ()) -> Any:
    """Return a dataclass field with its --help text and, if limited, its choices.

    A mapping as choices holds recipes: each choice stands for the defaults of other settings.
    names: of the flag, for argparse, if it has other names than the field's.
    """
    metadata = {"help": help, "choices": choices, "names": names}
    return dataclasses.field(default=default, metadata=metadata)


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
        kind, default = kinds[field.name], getattr(settings, field.name)
        text = field.metadata["help"]
        if default not in (None, (), ""):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
        if isinstance(kind, types.UnionType):  # X | None
            kind = typing.get_args(kind)[0]
        options: dict[str, Any] = {"choices": field.metadata["choices"] or None}
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
            options |= {"nargs": "*", "action": "extend"}  # a flag may be repeated
        options["type"] = _path if kind is Path else kind
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        options |= {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        parser.add_argument(*field.metadata["names"] or [f"--{field.name}"], **options)
    given = vars(parser.parse_args(arguments))
    for field in fields:
        value = given.get(field.name, getattr(settings, field.name))
        if isinstance(value, list):
            given[field.name] = tuple(value)
        if isinstance(field.metadata["choices"], Mapping):
            settings = dataclasses.replace(settings, **field.metadata["choices"][value])
    return dataclasses.replace(settings, **given)


def _path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("is empty: name a file or a folder")
    return Path(text)
