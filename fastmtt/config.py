"""The commands' configuration from a file and flags: jsonargparse's work, in our sentences.

`--cfg FILE --key value`: flags win over the file wherever they stand, values are read as YAML
(`False` is false, `null` is none, `1e-05` is a number), a bare `--zca` means true. The published
programs read an override by `type(default)`, where `--zca False` means true. Their own keys and
spellings are understood, with a warning that names each; a file that names no method is told by
its keys.
"""

import difflib
import re
import sys
import types
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, overload

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from fastmtt.config_file import Entry, read_entries
from fastmtt.errors import FastmttError
from fastmtt.files import one_line
from fastmtt.methods import METHODS
from fastmtt.options import (
    BaseConfig,
    BufferConfig,
    DistillConfig,
    EvaluateConfig,
    ScoresConfig,
)
from fastmtt.published_config import SHORT, flag_value, is_all_of_imagenet, method_of, settle

COMMANDS: dict[str, type[Any]] = {
    "buffer": BufferConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "scores": ScoresConfig,
}
_ACTIONS = ("help", "print_config")  # flags that are no keys
_SOURCES = (
    "A key ends with the program it comes from, where it means the same: MTT (arXiv 2203.11932), "
    "FTD (2211.11004), TESLA (2211.10586), DATM (2310.05773), PAD (2408.03360), "
    "PDD (2310.06982), IDC (2205.14959); "
    "without one it is fastmtt's own."
)
# What YAML 1.1 takes for text, because it wants a dot and a sign: 1e-05, 1.5e3.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@overload
def parse(command: Literal["buffer"], argv: Sequence[str] | None = None) -> BufferConfig: ...
@overload
def parse(command: Literal["distill"], argv: Sequence[str] | None = None) -> DistillConfig: ...
@overload
def parse(command: Literal["evaluate"], argv: Sequence[str] | None = None) -> EvaluateConfig: ...
@overload
def parse(command: Literal["scores"], argv: Sequence[str] | None = None) -> ScoresConfig: ...
def parse(
    command: str, argv: Sequence[str] | None = None
) -> BufferConfig | DistillConfig | EvaluateConfig | ScoresConfig:
    """Read a command's configuration from `--cfg FILE --key value ...`.

    Args:
        command: buffer, distill, evaluate or scores.
        argv: The arguments; None: the process's.

    Warns:
        UserWarning: A file holds a key twice, a value as text where YAML's rules surprise, or a
            key that only a published program has; each is named.

    Raises:
        FastmttError: A key is unknown, a value is of the wrong type or out of range, a file is no
            configuration, or it asks for a choice this version does not have.
        SystemExit: After `--help` and `--print_config`.
    """
    kind = COMMANDS[command]
    types_of = get_type_hints(kind)
    files, flags, rest = _split(list(sys.argv[1:] if argv is None else argv), types_of)
    parser = _parser(command)
    given: dict[str, Any] = {}
    contents = [_last(file) for file in files]
    for content in contents:
        for entry in _known(content, command, types_of):
            given |= _checked(parser, entry, _typed(entry, types_of[entry.name]), types_of)
    for flag in _known(flags, command, types_of):
        given |= _checked(parser, flag, flag.text, types_of)
    if command == "distill" and files and "method" not in given:
        given["method"] = _told_by(contents)
    given = _of_the_method(given, types_of) | given
    if is_all_of_imagenet(given):
        given["dataset"] = "ImageNet1K"
    try:
        values = parser.parse_args(rest, namespace=parser.parse_object(given, defaults=False))
    except ArgumentError as error:
        _parser.cache_clear()  # jsonargparse leaves in it what was asked for before the error
        raise FastmttError(_stray(str(error))) from None
    try:
        return kind(**{field.name: values[field.name] for field in fields(kind)})
    except FastmttError as error:
        if not files:
            raise
        sources = [*map(str, files), *(["the command line"] if flags or rest else [])]
        raise FastmttError(f"{' and '.join(sources)}: {error}") from None


def to_yaml(config: BaseConfig | EvaluateConfig) -> str:
    """Write a configuration as a file that `--cfg` reads back to an equal one."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


@cache
def _parser(command: str) -> ArgumentParser:
    kind = COMMANDS[command]
    types_of, helps = get_type_hints(kind), _helps(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    positional = [name for name in ("run",) if name in types_of]
    parser = ArgumentParser(
        prog=f"python -m fastmtt.{command}",
        usage=" ".join(
            ["%(prog)s", *(f"[{name.upper()}]" for name in positional), "[--cfg FILE]"]
            + ["[--key value ...]"]
        ),
        description=f"{_about(kind)} {_SOURCES}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    help_cfg = "A YAML file of these keys; flags win over it, the last file over earlier ones."
    parser.add_argument("--cfg", action="config", metavar="FILE", help=help_cfg)
    for title, names in kind.GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names.split():
            if name in positional:
                group.add_argument(name, metavar=name.upper(), nargs="?", help=helps[name])
            else:
                group.add_argument(
                    f"--{name}", type=types_of[name], default=defaults[name], help=helps[name]
                )
    return parser


def _of_the_method(given: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Give the choices of the method that is asked for, as far as the command has their keys."""
    name = given.get("method", "mtt")
    if name not in METHODS:
        raise FastmttError(f"method {_short(name)!r} is not known; known: {', '.join(METHODS)}")
    return {key: value for key, value in METHODS[name].choices.items() if key in known}


def _told_by(contents: list[list[Entry]]) -> str:
    """Tell the method of files that name none by their keys."""
    last = contents[-1][-1].file
    method, sign = method_of({entry.name for content in contents for entry in content})
    _warn(f"{last} names no method; taken as {method}: {sign}")
    return method


def _about(kind: type[Any]) -> str:
    """Give what a configuration's docstring says before its keys."""
    text = docstring_parser.parse(kind.__doc__ or "")
    return " ".join(filter(None, (text.short_description, text.long_description)))


def _helps(kind: type[Any]) -> dict[str, str]:
    """Give every key's text from the docstrings of a configuration's class and its bases."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        for key in docstring_parser.parse(base.__doc__ or "").params:
            helps[key.arg_name] = " ".join((key.description or "").split())
    return helps


def _split(argv: list[str], types_of: dict[str, Any]) -> tuple[list[Path], list[Entry], list[str]]:
    """Take arguments apart: files, flags, the rest; a bare flag of a bool is true."""
    files, flags, rest = [], [], []
    waiting = argv[::-1]
    while waiting:
        part = waiting.pop()
        part = f"--{SHORT[part]}" if part in SHORT else part
        name, has_value, text = part[2:].partition("=")
        if not part.startswith("--") or name in _ACTIONS:
            rest.append(part)
            continue
        if not has_value:
            follows = bool(waiting) and not waiting[-1].startswith("--")
            text = waiting.pop() if follows else ""
            has_value = "=" if follows else ""
        if name == "cfg":
            if not text:
                raise FastmttError("--cfg wants a YAML file behind it")
            files.append(Path(text))
            continue
        if not has_value:
            if name in types_of and bool not in _options(types_of[name]):
                wanted = _in_words(types_of[name])
                raise FastmttError(f"--{name} wants a value behind it: {wanted}")
            text = "true"
        flags.append(Entry(name, flag_value(text), text))
    return files, flags, rest


def _known(entries: list[Entry], command: str, types_of: dict[str, Any]) -> list[Entry]:
    """Keep the command's own keys; what a published program means by its own is said."""
    kept = settle(entries, types_of, command)
    for entry in kept:
        _check_key(entry, command, types_of)
    return kept


def _check_key(entry: Entry, command: str, known: Iterable[str]) -> None:
    name = entry.name
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1, 0.5)
    others = [other for other, kind in COMMANDS.items() if name in get_type_hints(kind)]
    if others:
        hint = f"; it is a key of fastmtt.{' and '.join(others)}"
    elif near:
        hint = f"; the nearest is {near[0]}"
    else:
        hint = f"; see python -m fastmtt.{command} --help"
    where = f"{entry.place}key " if entry.file else "flag --"
    raise FastmttError(f"{where}{_short(name)} is unknown to fastmtt.{command}{hint}")


def _last(file: Path) -> list[Entry]:
    """Read a file's entries; of a key that stands twice the last, which is said."""
    last: dict[str, Entry] = {}
    for entry in read_entries(file):
        if entry.name in last:
            _warn(f"{file} holds {entry.name} twice; the last one counts ({entry.text})")
        last[entry.name] = entry
    return list(last.values())


def _checked(
    parser: ArgumentParser, entry: Entry, value: Any, types_of: dict[str, Any]
) -> dict[str, Any]:
    """Give the entry's value in its key's type, by the key."""
    try:
        return vars(parser.parse_object({entry.name: value}, defaults=False))
    except (ArgumentError, ValueError, OverflowError, RecursionError):
        wanted = _in_words(types_of[entry.name])
        raise FastmttError(
            f"{entry.place}{entry.name} is {_short(entry.text)}, wanted {wanted}"
        ) from None


def _typed(entry: Entry, kind: Any) -> Any:
    """Give a file's value as the key's type where YAML's rules hide it."""
    options, value = _options(kind), entry.value
    if value is None and type(None) not in options:
        raise FastmttError(f"{entry.place}{entry.name} is null, wanted {_in_words(kind)}")
    if isinstance(value, list):
        raise FastmttError(f"{entry.place}{entry.name} is a list, wanted {_in_words(kind)}")
    if value is not None and str in options:
        return entry.text
    if not isinstance(value, str):
        return value
    if float in options and _EXPONENT.fullmatch(value):
        _warn(
            f"{entry.place}{entry.name} is {value}, which YAML reads as text; taken as the number "
            f"{float(value)}"
        )
        return float(value)
    if bool in options and value in ("True", "False", "true", "false"):
        _warn(f"{entry.place}{entry.name} is the text {value!r}; taken as {value.lower()}")
        return value.lower() == "true"
    return value


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


def _stray(message: str) -> str:
    """Say in our words what jsonargparse says of arguments that are no flags."""
    stray = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if stray:
        return f"{_short(stray[1])!r} belongs to no flag; write --key value"
    return one_line(ValueError(message))


def _short(text: str) -> str:
    """Give text on one line, and only its beginning where it is long."""
    line = " ".join(text.split()) or repr(text)
    return line if len(line) <= 80 else f"{line[:80]}..."


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
