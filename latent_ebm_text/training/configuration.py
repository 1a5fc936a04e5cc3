"""From the command line and a YAML file to the dataclasses of a recipe, with one clear line for every mistake."""

import argparse
import dataclasses
import difflib
import inspect
import math
import reprlib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from latent_ebm_text.errors import UsageError
from latent_ebm_text.errors import run_recipe as run_recipe

_COMMAND_LINE = "the command line"
_KIND_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def parse_recipe_arguments(
    dataclass_types: tuple[type, ...],
    argv: list[str] | None = None,
    *,
    description: str,
    default_config: Path | None = None,
    prog: str | None = None,
) -> tuple[Any, ...]:
    """Fill one instance of each dataclass from the command line, else from `--config file.yaml`, else from defaults.

    Fields are `int`, `float`, `str`, `bool`, a `Literal`, or an `Optional` of these, for which `none` and `null` mean
    `None`. Their help is `field(metadata={"help": ...})` in argparse's format (`%%` for a per cent sign); the first
    line of a dataclass's docstring is the title of its group. The YAML file maps names to values, without nesting.

    Args:
        dataclass_types (`tuple[type, ...]`): The dataclasses to fill, in the order of the returned instances.
        argv (`list[str]`, *optional*): Arguments without the program's name; defaults to those of this process.
        description (`str`): What the recipe does, for `--help`.
        default_config (`Path`, *optional*): The YAML file to read where `--config` is not given.
        prog (`str`, *optional*): What the user called; by default the name of this process's script.

    Raises:
        UsageError: An argument, the YAML file, or a value that a dataclass's `__post_init__` refuses.
    """
    fields = {field.name: field for dtype in dataclass_types for field in dataclasses.fields(dtype) if field.init}
    hints = {name: hint for dtype in dataclass_types for name, hint in get_type_hints(dtype).items() if name in fields}
    parser = _build_parser(dataclass_types, fields, hints, description, prog)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(_describe_unknown_argument(unknown[0], parser._option_string_actions))
    given = vars(arguments)
    config_file = given.pop("config", default_config)
    if config_file is not None:
        config_file = bundled_config(str(config_file)) or config_file

    values: dict[str, Any] = {}
    if config_file is not None:
        for name, value in _read_yaml(config_file).items():
            if name not in fields:
                raise UsageError(f"unknown key {name!r} in {config_file}{_suggest(str(name), fields)}")
            values[name] = _convert(name, hints[name], value, source=config_file)
    for name, value in given.items():
        values[name] = _convert(name, hints[name], value, source=_COMMAND_LINE)
    for name, field in fields.items():
        if name not in values and not _has_default(field):
            raise UsageError(f"{name} is required; give --{name} or set it in the --config file")

    try:
        return tuple(parser.parse_dict(values, allow_extra_keys=True))
    except ValueError as error:
        raise UsageError(str(error)) from error


def bundled_config(name: str) -> Path | None:
    """A configuration that comes with the library, such as `quickstart`, by its name; none if there is none."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "recipes" / "configs")  # of a wheel, of a checkout
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    return found[0] if found else None


def option(default: Any, help: str) -> Any:
    """A field of a recipe's dataclass, with its default and its line of `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})


def require_positive(name: str, value: float) -> None:
    """Raise a `UsageError` that names the field unless `value` is finite and greater than zero."""
    if not 0 < value < math.inf:
        raise UsageError(f"{name} must be positive and finite, got {value}")


def require_in_interval(name: str, value: float, low: float, high: float) -> None:
    """Raise a `UsageError` that names the field unless `low <= value <= high`."""
    if not low <= value <= high:
        raise UsageError(f"{name} must be in [{low}, {high}], got {value}")


# -------- command line


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the lines of a recipe's docstring as they are: they hold commands."""


class _RecipeParser(HfArgumentParser):
    """Raises instead of printing the usage of a hundred options."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += " (a value that begins with '-' is written --option=value)"
        raise UsageError(message)


def _build_parser(
    dataclass_types: tuple[type, ...],
    fields: dict[str, dataclasses.Field[Any]],
    hints: dict[str, Any],
    description: str,
    prog: str | None,
) -> _RecipeParser:
    """A parser that hands back strings, and only for the options that were given.

    `_convert` reads the strings, so that a value means the same, and fails with the same words, in a YAML file.
    """
    for dtype in dataclass_types:
        title = (inspect.getdoc(dtype) or dtype.__name__).splitlines()[0].removesuffix(".")
        dtype._argument_group_name = title  # type: ignore[attr-defined]  # the interface of HfArgumentParser
    parser = _RecipeParser(
        dataclass_types,
        prog=prog,
        description=description,
        formatter_class=_Help,
        usage="%(prog)s [--config FILE.yaml] [--option value ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        default=argparse.SUPPRESS,
        help="YAML file with values for any of the options below; the command line goes before it",
    )
    for action in parser._actions:
        if action.dest not in fields:
            continue
        field, (kind, _) = fields[action.dest], _split_optional(hints[action.dest])
        if action.nargs == 0:  # the `--no_flag` that HfArgumentParser adds to flags that default to true
            action.help = argparse.SUPPRESS
        else:
            default = _describe_default(field)
            if kind is bool:
                default += f"; --no_{field.name} for false"
                action.nargs, action.const = "?", True
            choices = ",".join(map(str, get_args(kind)))
            action.metavar = f"{{{choices}}}" if choices else kind.__name__.upper()
            action.help = f"{action.help or ''} ({default})".strip()
        action.type, action.choices, action.required, action.default = None, None, False, argparse.SUPPRESS
    for name, field in fields.items():
        if _split_optional(hints[name])[0] is bool and field.default is not True:
            options = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
            parser.add_argument(
                *options, dest=name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )
    return parser


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _describe_default(field: dataclasses.Field[Any]) -> str:
    if not _has_default(field):
        return "required"
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    text = str(default).lower() if default is None or isinstance(default, bool) else str(default)
    return "default: " + text.replace("%", "%%")


def _describe_unknown_argument(argument: str, options: Iterable[str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; every option is written --name value"
    option = argument.partition("=")[0]
    return f"unknown option {option!r}{_suggest(option, options)}"


def _suggest(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; --help lists what there is"


# -------- values


def _read_yaml(file: str) -> dict[Any, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"the config file {file} does not exist") from error
    except OSError as error:
        raise UsageError(f"the config file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the config file {file} is not UTF-8 text") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UsageError(f"{file} is not valid YAML: {error.problem} (line {line})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, such as 2026-13-40
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{file} must map option names to values, as in 'num_epochs: 10'")
    # Of two equal keys PyYAML takes the last without a word.
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise UsageError(f"duplicate key {key.value!r} in {file} (line {key.start_mark.line + 1})")
        seen.add(key.value)
    return values


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """`Optional[X]` -> `(X, True)`, any other `X` -> `(X, False)`; raises a `TypeError` for other types."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [member for member in members if member is not types.NoneType]
    if len(kinds) != 1 or not (kinds[0] in _KIND_NAMES or get_origin(kinds[0]) is Literal):
        raise TypeError(f"a recipe option is an int, float, str, bool, Literal or an Optional of these, not {hint}")
    return kinds[0], len(kinds) < len(members)


def _convert(name: str, hint: Any, value: Any, *, source: str) -> Any:
    """Read a string of the command line, or a value of a YAML file, as the type of the field `name`."""
    kind, is_optional = _split_optional(hint)
    if is_optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    try:
        return _read_as(kind, value)
    except (argparse.ArgumentTypeError, KeyError, TypeError, ValueError, OverflowError) as error:
        expected = _KIND_NAMES.get(kind) or "one of " + ", ".join(map(repr, get_args(kind)))
        expected += " or none" if is_optional else ""
        advice = "; put it in quotes" if kind is str else ""
        raise UsageError(f"{name} must be {expected}, got {reprlib.repr(value)} (from {source}){advice}") from error


def _read_as(kind: Any, value: Any) -> Any:
    """Whatever this raises means that `value` is not a `kind`."""
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[str(value)]
    if kind is bool:
        return string_to_bool(str(value))
    # YAML reads 010 as 8 and `no` as False: str() would not give back what was written, and Python counts True as 1.
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise TypeError
    if kind is str:
        return value
    if kind is float:
        return float(value)  # also of a string: PyYAML reads 1e-4 as one
    if isinstance(value, str):
        try:
            return int(value)  # exact, where float() rounds a large seed
        except ValueError:
            value = float(value)
    if value != int(value):
        raise ValueError
    return int(value)
