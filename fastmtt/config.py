"""The commands' configuration from a file and flags: jsonargparse's work, in our sentences.

`--cfg FILE --key value`: flags win over the file wherever they stand, values are read as YAML
(`False` is false, `null` is none, `1e-05` is a number), a bare `--zca` means true. The published
programs read an override by `type(default)`, where `--zca False` means true.
"""

import difflib
import re
import sys
import types
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, overload

import yaml
from jsonargparse import ArgumentParser

from fastmtt.errors import FastmttError
from fastmtt.files import one_line
from fastmtt.options import BaseConfig, BufferConfig, DistillConfig, EvaluateConfig

_COMMANDS: dict[str, type[Any]] = {
    "buffer": BufferConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
}
_FLAGS = ("cfg", "help", "print_config")


@overload
def parse(command: Literal["buffer"], argv: Sequence[str] | None = None) -> BufferConfig: ...
@overload
def parse(command: Literal["distill"], argv: Sequence[str] | None = None) -> DistillConfig: ...
@overload
def parse(command: Literal["evaluate"], argv: Sequence[str] | None = None) -> EvaluateConfig: ...
def parse(
    command: str, argv: Sequence[str] | None = None
) -> BufferConfig | DistillConfig | EvaluateConfig:
    """Read a command's configuration from `--cfg FILE --key value ...`.

    Args:
        command: buffer, distill or evaluate.
        argv: The arguments; None: the process's.

    Raises:
        FastmttError: A key is unknown, a value is of the wrong type or out of range.
        SystemExit: After `--help` and `--print_config`.
    """
    kind = _COMMANDS[command]
    types_of = get_type_hints(kind)
    files, flags = _split(list(sys.argv[1:] if argv is None else argv), types_of)
    for name in (flag[2:].split("=")[0] for flag in flags if flag.startswith("--")):
        _check_key(name, command, [*types_of, *_FLAGS], "flag --")
    for file in files:
        _check_file(file, command, types_of)
    arguments = [part for file in files for part in ("--cfg", str(file))] + flags
    try:
        values = _parser(command, kind).parse_args(arguments)
    except ArgumentError as error:
        raise FastmttError(_sentence(str(error), types_of)) from None
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def to_yaml(config: BaseConfig | EvaluateConfig) -> str:
    """Write a configuration as a file that `--cfg` reads back to an equal one."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def _parser(command: str, kind: type[Any]) -> ArgumentParser:
    positional = [name for name in ("run",) if name in get_type_hints(kind)]
    parser = ArgumentParser(
        prog=f"python -m fastmtt.{command}",
        usage=" ".join(
            [
                "%(prog)s",
                *(f"[{name.upper()}]" for name in positional),
                "[--cfg FILE] [--key value ...]",
            ]
        ),
        exit_on_error=False,
        allow_abbrev=False,
    )
    for name in positional:
        help_run = "A run's folder, or its images' file."
        parser.add_argument(name, metavar=name.upper(), nargs="?", help=help_run)
    help_cfg = "A YAML file of these keys; flags win over it, the last file over earlier ones."
    parser.add_argument("--cfg", action="config", metavar="FILE", help=help_cfg)
    parser.add_class_arguments(kind, skip=set(positional))
    return parser


def _split(argv: list[str], types_of: dict[str, Any]) -> tuple[list[Path], list[str]]:
    """Take `--cfg FILE` out, so that flags win wherever they stand; a bare bool flag is true."""
    files, flags = [], []
    waiting = argv[::-1]
    while waiting:
        part = waiting.pop()
        if part == "--cfg":
            if not waiting:
                raise FastmttError("--cfg wants a YAML file behind it")
            files.append(Path(waiting.pop()))
        elif part.startswith("--cfg="):
            files.append(Path(part.removeprefix("--cfg=")))
        else:
            flags.append(part)
            bare = part.startswith("--") and (not waiting or waiting[-1].startswith("--"))
            if bare and bool in _options(types_of.get(part[2:])):
                flags.append("true")
    return files, flags


def _check_key(name: str, command: str, known: Iterable[str], where: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1, 0.5)
    others = [other for other, kind in _COMMANDS.items() if name in get_type_hints(kind)]
    if others:
        hint = f"; it is a key of fastmtt.{' and '.join(others)}"
    elif near:
        hint = f"; the nearest is {near[0]}"
    else:
        hint = f"; see python -m fastmtt.{command} --help"
    raise FastmttError(f"{where}{name} is unknown to fastmtt.{command}{hint}")


def _check_file(file: Path, command: str, types_of: dict[str, Any]) -> None:
    """Refuse what is no mapping of known keys; a key that stands twice is said."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise FastmttError(f"{file} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FastmttError(f"{file} is no YAML file ({one_line(error)})") from None
    if root is None:
        raise FastmttError(f"{file} is empty, wanted keys and values")
    if not isinstance(root, yaml.MappingNode):
        raise FastmttError(f"{file} holds no keys and values, wanted lines like 'ipc: 10'")
    seen: dict[str, str] = {}
    for key, value in root.value:
        name = str(key.value)
        line = key.start_mark.line + 1
        _check_key(name, command, types_of, f"{file}, line {line}: key ")
        if name in seen:
            warnings.warn(
                f"{file} holds {name} twice; the last one counts ({value.value})", stacklevel=4
            )
        seen[name] = value.value


def _sentence(message: str, types_of: dict[str, Any]) -> str:
    """Say in one sentence what jsonargparse says in several lines."""
    key = re.match(r'Parser key "(\w+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)\Z", message)
    if key and value and key[1] in types_of:
        return f"{key[1]} is {value[1]}, wanted {_in_words(types_of[key[1]])}"
    alone = re.match(r"argument --(\w+): expected one argument", message)
    if alone and alone[1] in types_of:
        return f"--{alone[1]} wants a value behind it: {_in_words(types_of[alone[1]])}"
    stray = re.match(r"unrecognized arguments: (.*)", message)
    if stray:
        return f"{stray[1]!r} belongs to no flag; write --key value"
    return one_line(ValueError(message))


def _options(kind: Any) -> tuple[Any, ...]:
    """Give the alternatives of a type: the members of a union, or itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _in_words(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words: list[str] = []
    for option in _options(kind):
        if get_origin(option) is Literal:
            words += map(str, get_args(option))
        else:
            words.append("null" if option is type(None) else plain[option])
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
