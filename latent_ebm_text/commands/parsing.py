"""From the command line and a YAML file to dataclasses, with one clear line for every mistake.

Recipes and the program `latent-ebm` share this parser. An option has one name: `--num_epochs` (or `--num-epochs`) on
the command line is `num_epochs:` in a YAML file, and `--prior_sampler.num_steps` is `num_steps:` under
`prior_sampler:`. A value means the same on both sides.
"""

import argparse
import difflib
import inspect
import os
import re
import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from latent_ebm_text.errors import LatentEBMError, UsageError

_COMMAND_LINE = "the command line"
_KIND_NAMES: dict[Any, str] = {
    int: "an integer", float: "a number", bool: "true or false", str: "a string",
    list[int]: "integers with commas between them", list[str]: "strings with commas between them",
    dict: "a number, or a schedule such as {start: 0.6, end: 0.3}",
}  # fmt: skip


_METAVARS: dict[Any, str] = {
    int: "INT", float: "FLOAT", str: "STR", list[int]: "INT,INT", list[str]: "STR,STR", dict: "FLOAT",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        name: The name, such as `"num_epochs"`; a dot leads into a mapping, as in `"prior_sampler.num_steps"`.
        hint: The type of its values, see [`parse_arguments`].
        default: The default; `MISSING` for an option that is required.
        help: What `--help` says of it; empty to leave it out there.
        positional: Whether it is given without its name.
        auto: Whether its value may also be `"auto"`, for what follows from the data.
    """

    name: str
    hint: Any
    default: Any
    help: str
    positional: bool = False
    auto: bool = False


def parse_arguments(
    groups: tuple[type, ...],
    argv: list[str] | None = None,
    *,
    description: str,
    default_config: Path | None = None,
    prog: str | None = None,
) -> tuple[Any, ...]:
    """Fills one instance of each dataclass from the command line, else from a YAML file, else from its defaults.

    Fields are `int`, `float`, `str`, `bool`, a `Literal`, a list of integers or strings, a number or a schedule
    (`float | dict`), or an `Optional` of these, for which `none` and `null` mean `None`. The metadata of a field holds
    its `help`, and `positional` if it is given without its name. A field whose metadata names a model configuration
    class as `config` stands for all settings of that class, see [`config_options`]. The first line of a dataclass's
    docstring is the title of its group in `--help`, which shows the defaults that will be used, those of the YAML file
    included.

    Args:
        groups: The dataclasses to fill, in the order of the returned instances.
        argv: Arguments without the program's name; those of this process by default.
        description: What the command does, for `--help`.
        default_config: The YAML file that is read where `--config` is not given.
        prog: What the user called; the name of this process's script by default.

    Raises:
        UsageError: If an argument, the YAML file, or a value that a dataclass checks cannot be right.
    """
    argv = sys.argv[1:] if argv is None else argv
    by_group = {group: group_options(group) for group in groups}
    options = {option.name: option for members in by_group.values() for option in members}

    only_config = _Parser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config")
    file = only_config.parse_known_args(argv)[0].config or default_config
    file = file and (bundled_config(str(file)) or Path(file))
    values = {} if file is None else _read_config(file, options)

    parser = _build_parser(by_group, values, description, prog)
    is_mixed = any(option.positional for option in options.values())
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions of what was typed so far
        import argcomplete

        argcomplete.autocomplete(parser)
    namespace, unknown = (parser.parse_known_intermixed_args if is_mixed else parser.parse_known_args)(argv)
    if unknown:
        raise UsageError(_describe_unknown(unknown[0], parser._option_string_actions))
    given = vars(namespace)
    given.pop("config", None)
    given = {name: _convert(options[name], value, _COMMAND_LINE) for name, value in given.items()}
    values = {name: value for name, value in values.items() if not _is_of_another_sampler(name, values, given)} | given
    for name, option in options.items():
        if option.default is MISSING and name not in values:
            where = f"give {name.upper()}" if option.positional else f"give --{name} or set it in the --config file"
            raise UsageError(f"{name} is required; {where}")
    try:
        return tuple(_fill(group, values) for group in groups)
    except LatentEBMError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def argument(help: str, default: Any = MISSING) -> Any:
    """A field of a dataclass of arguments that is given by its place and not by its name."""
    return field(default=default, metadata={"help": help, "positional": True})


def description_of(command: Callable[..., Any]) -> str:
    """The docstring of a command, for `--help`."""
    return inspect.getdoc(command) or ""


def bundled_config(name: str) -> Path | None:
    """The configuration of this name that comes with the library, such as `quickstart` or `paper/ptb`, if any."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "recipes" / "configs")  # of a wheel, of a checkout
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    return found[0] if found else None


# -------- options


def group_options(group: type) -> list[Option]:
    """The options that a dataclass stands for, in the order of its fields."""
    hints, options = get_type_hints(group), []
    for each in fields(group):
        if not each.init:
            continue
        if "config" in each.metadata:
            options += config_options(**each.metadata)
            continue
        _split_optional(hints[each.name])  # refuses a type that cannot be read
        default = each.default if each.default_factory is MISSING else each.default_factory()
        help, positional = each.metadata.get("help", ""), each.metadata.get("positional", False)
        auto = each.metadata.get("auto", False)
        options.append(Option(each.name, hints[each.name], default, help, positional, auto))
    return options


def config_options(
    config: type, leave_out: frozenset[str] = frozenset(), automatic: frozenset[str] = frozenset()
) -> list[Option]:
    """The settings of a model configuration as options, with its own names, defaults and descriptions.

    The two samplers become one option for each of their settings.

    Args:
        config: A subclass of [`~latent_ebm_text.LatentEBMConfig`].
        leave_out: Settings that follow from the data.
        automatic: Settings whose value may also be `"auto"`.
    """
    defaults, options = config(), []
    own = [cls for cls in reversed(config.__mro__) if cls.__module__ == config.__module__]
    help = {name: text for cls in own for name, text in _documented_arguments(cls).items()}
    hints = {name: hint for cls in own for name, hint in cls.__annotations__.items()}
    for name, hint in hints.items():
        if name in leave_out or name not in help:
            continue
        if name.endswith("_sampler"):
            options += _sampler_options(name, getattr(defaults, name), help[name])
        else:
            options.append(Option(name, hint, getattr(defaults, name), help[name], auto=name in automatic))
    return options


def default_settings(config: type, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The settings that [`config_options`] stand for, with their defaults."""
    return _settings(config_options(config, leave_out), {})


def _sampler_options(name: str, default: dict[str, Any], help: str) -> list[Option]:
    """The settings of Langevin dynamics, with their help; those of other samplers may be given as well."""
    from latent_ebm_text.latents.samplers import SAMPLERS, LangevinSampler  # here, because they import torch

    options = {"name": Option(f"{name}.name", Literal[tuple(SAMPLERS)], default["name"], help)}
    samplers: list[type[Any]] = [LangevinSampler, *SAMPLERS.values()]
    for sampler in samplers:
        documented = _documented_arguments(sampler) if sampler is LangevinSampler else {}
        hints = get_type_hints(sampler)
        for each in fields(sampler):
            own = default.get(each.name, None if each.default is MISSING else each.default)
            text = documented.get(each.name, "")
            options.setdefault(each.name, Option(f"{name}.{each.name}", hints[each.name], own, text))
    return list(options.values())


def _documented_arguments(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each of its arguments, links as plain names."""
    section = (inspect.cleandoc(cls.__doc__ or "") + "\n").partition("\nArgs:\n")[2].partition("\n\nRaises:")[0]
    entries = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\[`~?([^`]*)`\]", r"`\1`", " ".join(text.split())) for name, text in entries}


def _fill(group: type, values: dict[str, Any]) -> Any:
    """An instance of a dataclass; of the options of a configuration, the settings as one mapping."""
    arguments = {}
    for each in fields(group):
        if "config" in each.metadata:
            arguments[each.name] = _settings(config_options(**each.metadata), values)
        elif each.init and each.name in values:
            arguments[each.name] = values[each.name]
    return group(**arguments)


def _settings(options: list[Option], values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration; of a sampler other than Langevin dynamics only those that were given."""
    settings: dict[str, Any] = {}
    for option in options:
        outer, _, inner = option.name.partition(".")
        value = values.get(option.name, option.default)
        if not inner:
            settings[outer] = value
            continue
        is_langevin = values.get(f"{outer}.name", "langevin") == "langevin"
        if inner == "name" or option.name in values or (is_langevin and option.help and value is not None):
            settings.setdefault(outer, {})[inner] = value
    return settings


def _is_of_another_sampler(name: str, values: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a value of the file is a setting of a sampler that the command line replaces."""
    sampler = f"{name.partition('.')[0]}.name"
    return "." in name and given.get(sampler, values.get(sampler, "langevin")) != values.get(sampler, "langevin")


# -------- the command line


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of a description as they are: they hold commands."""


class _Parser(argparse.ArgumentParser):
    """Raises an error where argparse would print the usage of a hundred options."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += " (a value that begins with '-' is written --option=value)"
        raise UsageError(message)


def _build_parser(
    by_group: Mapping[type, list[Option]], file_values: Mapping[str, Any], description: str, prog: str | None
) -> _Parser:
    """A parser that hands back strings, and only for the options that were given.

    `_convert` reads the strings, so that a value means the same, and fails with the same words, in a YAML file.
    """
    places = [option for options in by_group.values() for option in options if option.positional]
    shown = (option.name.upper() if option.default is MISSING else f"[{option.name.upper()}]" for option in places)
    positionals = "".join(f" {name}" for name in shown)
    parser = _Parser(
        prog=prog,
        description=description,
        formatter_class=_Help,
        usage=f"%(prog)s{positionals} [--config FILE.yaml] [--option value ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        default=argparse.SUPPRESS,
        help="YAML file with values for the options below, or the name of one that comes with the library, such as "
        "quickstart or paper/ptb; the command line overrides it",
    )
    for group, options in by_group.items():
        title = (inspect.getdoc(group) or group.__name__).splitlines()[0].removesuffix(".")
        members = parser.add_argument_group(title)
        for option in options:
            _add_option(members, option, file_values.get(option.name, option.default), takes_positionals=bool(places))
    return parser


def _add_option(group: Any, option: Option, default: Any, *, takes_positionals: bool) -> None:
    name, (kind, _) = option.name, _split_optional(option.hint)
    help = option.help.replace("%", "%%")
    if option.auto:
        help += " `auto` for what suits the data."
    describe = "required" if default is MISSING else f"default: {_written(default)}".replace("%", "%%")
    if option.positional:
        count = "*" if get_origin(kind) is list else None if default is MISSING else "?"
        group.add_argument(name, nargs=count, metavar=name.upper(), default=argparse.SUPPRESS, help=help)
        return
    spellings = list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))
    shown = f"{help} ({describe})" if help else argparse.SUPPRESS
    if kind is not bool:
        choices = ",".join(map(str, get_args(kind))) if get_origin(kind) is Literal else ""
        metavar = f"{{{choices}}}" if choices else _METAVARS.get(kind, "TEXT")
        group.add_argument(*spellings, dest=name, metavar=metavar, default=argparse.SUPPRESS, help=shown)
        return
    # An optional value would swallow a positional argument that follows it.
    takes = {"action": "store_true"} if takes_positionals else {"nargs": "?", "const": True, "metavar": "BOOL"}
    off = f"--no_{name}"
    if help and default is not False:
        shown = f"{help} ({describe}; {off} for false)"
    group.add_argument(*spellings, dest=name, default=argparse.SUPPRESS, help=shown, **takes)
    group.add_argument(
        off, f"--no-{name.replace('_', '-')}",
        dest=name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS,
    )  # fmt: skip


def _written(value: Any) -> str:
    """A value as a YAML file would have it, on one line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()
    return str(value)


def _describe_unknown(argument: str, spellings: Iterable[str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; every option is written --name value"
    name = argument.partition("=")[0]
    return f"unknown option {name!r}{_suggest(name, spellings)}"


def _suggest(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; --help lists what there is"


# -------- the YAML file


def _read_config(file: Path, options: Mapping[str, Option]) -> dict[str, Any]:
    """The values of a file, those of a mapping under names with a dot."""
    mappings = {name.partition(".")[0] for name in options if "." in name}
    values: dict[str, Any] = {}
    for key, value in _read_yaml(file).items():
        if key in mappings:
            if not isinstance(value, dict):
                raise UsageError(f"{key} must be a mapping of settings to values, got {value!r} (from {file})")
            values |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            values[key] = value
    for name, value in values.items():
        if name not in options or options[name].positional:
            raise UsageError(f"unknown key {name!r} in {file}{_suggest(str(name), options)}")
        values[name] = _convert(options[name], value, str(file))
    return values


def _read_yaml(file: Path) -> dict[Any, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"the config file {file} does not exist") from error
    except OSError as error:
        raise UsageError(f"the config file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the config file {file} is not UTF-8 text") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except RecursionError as error:
        raise UsageError(f"{file} is nested too deeply for a map of option names to values") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UsageError(f"{file} is not valid YAML: {error.problem} (line {line})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, such as 2026-13-40
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{file} must map option names to values, as in 'num_epochs: 10'")
    _refuse_duplicates(node, file)
    return dict(values)


def _refuse_duplicates(root: yaml.MappingNode, file: Path) -> None:
    """Of two equal keys PyYAML takes the last without a word."""
    mappings, visited = [root], {id(root)}
    for node in mappings:
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise UsageError(f"duplicate key {key.value!r} in {file} (line {key.start_mark.line + 1})")
            seen.add(key.value)
            if isinstance(value, yaml.MappingNode) and id(value) not in visited:  # an alias comes back to its node
                mappings.append(value)
                visited.add(id(value))


# -------- values


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """`Optional[X]` -> `(X, True)`, any other `X` -> `(X, False)`; raises a `TypeError` for other types."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [member for member in members if member is not types.NoneType]
    if set(kinds) == {int, float}:  # a configuration's number
        kinds = [float]
    elif any(get_origin(kind) in (dict, Mapping) for kind in kinds):  # a schedule, which may also be a number
        kinds = [dict]
    if len(kinds) != 1 or not (kinds[0] in _KIND_NAMES or get_origin(kinds[0]) is Literal):
        raise TypeError(f"an option is an int, float, str, bool, Literal, list or an Optional of these, not {hint}")
    return kinds[0], types.NoneType in members


def _convert(option: Option, value: Any, source: str) -> Any:
    """Reads a string of the command line, or a value of a YAML file, as the type of an option."""
    name = option.name
    kind, is_optional = _split_optional(option.hint)
    if option.auto and value == "auto":
        return value
    if is_optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    if kind is str and isinstance(value, str):
        _check_text(name, value, source)
    try:
        return _read_as(kind, value)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        expected = _KIND_NAMES.get(kind) or "one of " + ", ".join(map(repr, get_args(kind)))
        expected += " or auto" if option.auto else ""
        expected += " or none" if is_optional else ""
        advice = "; put it in quotes" if kind is str else ""
        raise UsageError(f"{name} must be {expected}, got {reprlib.repr(value)} (from {source}){advice}") from error


def _check_text(name: str, value: str, source: str) -> None:
    """Refuses what can be no name, path or prompt.

    An empty path, as of a variable of the shell that is not set, would be the working directory. A path that is not
    UTF-8 could not be printed at the end of a run.
    """
    if not value.strip() or "\0" in value:
        raise UsageError(f"{name} must not be empty or hold a NUL character, got {value!r} (from {source})")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} holds half of a surrogate pair, as of bytes that are not UTF-8: {value!r} (from {source})"
        ) from error


def _read_as(kind: Any, value: Any) -> Any:
    """Whatever this raises means that `value` is not a `kind`."""
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[str(value)]
    if kind is bool:
        return _BOOLS[str(value).lower()]
    if kind is dict:
        value = yaml.safe_load(value) if isinstance(value, str) else value
        return value if isinstance(value, dict | list) else _read_as(float, value)
    if get_origin(kind) is list:
        (member,) = get_args(kind)
        values = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise TypeError
        return [_read_as(member, each) for each in values]
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


_BOOLS = dict.fromkeys(("true", "yes", "y", "t", "1", "on"), True) | dict.fromkeys(
    ("false", "no", "n", "f", "0", "off"), False
)
