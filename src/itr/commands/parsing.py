"""Command lines: one short message for a mistake, with near matches."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping
from inspect import isclass, signature
from types import MappingProxyType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from itr.commands.configs import import_config_classes
from itr.commands.near_matches import did_you_mean, near_arguments, near_options, unknown_class
from itr.private_api.jsonargparse import option_help, option_names, subcommands

CLASS_CONFIG = "--config"
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null",
    "list": "a list", "tuple": "a list", "dict": "a dictionary",
}  # fmt: skip


class FriendlyParser(ArgumentParser):
    """A parser whose errors take a line or two: what is wrong, and what may have been meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Without abbreviations, a shortened option is reported like any other mistyped one.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print `message` and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        text = re.sub(r"\n\s*\n+", "\n", str(message)).strip()
        if missing := re.search(r"arguments are required: (.*)|expected \"(.*?)\" to be one of", text):
            parser, text = self._missing((missing[1] or missing[2]).split(", "))
        if valueless := re.match(r"argument (?:.*/)?(--[\w.+-]+): expected (?:at least )?one argument", text):
            text = without_value(valueless[1], option_help(parser, valueless[1]))
        line = unknown_class(text) or with_hint(in_words(text), near_match(text, option_names(parser)))
        program = parser.prog.replace(" [options]", "")
        self.exit(2, f"itr: error: {line}\n`{program} --help` lists the options.\n")
        raise AssertionError("exit returned")

    def _missing(self, keys: list[str]) -> tuple[ArgumentParser, str]:
        """The parser of the verb, or of its part, that lacks these keys, and the message."""
        parser: ArgumentParser = self
        *verbs, _ = keys[0].split(".")
        while verbs and verbs[0] in (inner := subcommands(parser)[1]):
            parser = inner[verbs.pop(0)]
        names = [key.rpartition(".")[2] for key in keys]
        key, choices = subcommands(parser)
        if choices and names == [key.rpartition(".")[2]]:
            return parser, f"give {names[0].upper()}, one of {', '.join(choices)}"
        options = option_names(parser)
        return parser, f"give {' and '.join(f'--{n}' if n in options else n.upper() for n in names)}"


def with_hint(text: str, near: list[str]) -> str:
    """A message followed by near matches: in the same line if it has only one."""
    hint = did_you_mean(near)
    if not hint:
        return text
    return f"{text}\n{hint[0].upper()}{hint[1:]}" if "\n" in text else f"{text}; {hint}"


def near_match(text: str, options: list[str]) -> list[str]:
    """What may have been meant, if anything is similar.

    Args:
        text: the parser's message.
        options: the names of all options.
    """
    if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", text):
        return difflib.get_close_matches(choice[1], re.findall(r"'(.*?)'", choice[2]), n=1)
    if argument := re.search(r"class_path '([\w.]+)'[\s\S]*?[Oo]ption '(\w+)' is not accepted", text):
        return near_arguments(argument[1], argument[2])
    if config := re.match(r"unrecognized arguments: (\S+\.ya?ml)", text):
        return [f"--config {config[1]}"]
    if folder := re.match(r"Parser key \"data\":\s+Unable to load config '(.*)'", text):
        return [f"--data.root {folder[1]}"]
    unknown = re.search(r"(?:--|[Kk]ey ['\"]|does not accept option ')([\w.-]+)", text)
    if unknown and unknown[1] not in options:
        return [f"--{name}" for name in near_options(unknown[1], options)]
    return []


def without_value(option: str, wanted: str) -> str:
    """The message about an option without its value, with the first part of its help."""
    what = re.split(r"[;.](?: |$)| \(type:", wanted, maxsplit=1)[0]
    what = textwrap.shorten(what, 120, placeholder=" ...")
    return f"{option} needs a value" + (f": {what}" if what else "")


def in_words(text: str) -> str:
    """The message about a value of the wrong type in one line; any other message unchanged."""
    union = (
        r"Does not validate against any of the Union subtypes\s+Subtypes: .*\s+"
        r"Errors:\s+(?P<all>(?:- Expected an? .*\s+)+)Given value type: .*\s+Given value: "
    )
    found = re.fullmatch(
        rf"""Parser key "(?P<key>[\w.]+)":\s+(?:{union}|Expected an? (?P<one>.+)\. Got value: )(?P<value>.*)""", text
    )
    if found is None:
        return text
    expected = re.findall(r"- Expected an? (.*)", found["all"]) if found["all"] else [found["one"]]
    kinds: dict[str, None] = {}
    for kind in expected:
        literals = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
        name = re.sub(r"<class '([\w.]+)'>", r"\1", kind)
        names = [item.strip(" '\"") for item in literals[1].split(",")] if literals else [KINDS.get(name, name)]
        kinds.update(dict.fromkeys(names))
    *others, last = kinds
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"{found['key']} is {found['value']}; it must be {wanted}"


def parse_verb(
    arguments: list[str],
    function: Callable[..., None],
    opens_checkpoints: bool = False,
    positional: str = "",
    lists: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Parse `itr VERB [options]` into the values of its options.

    Args:
        arguments: the command line, the verb first.
        function: its arguments and docstring make the options.
        opens_checkpoints: add `--config`, see `add_class_config`.
        positional: an argument, one or more of which are given without its name.
        lists: options that take one or more values, with their help; also that of `positional`.
    """
    line = (function.__doc__ or "").strip().splitlines()[0]
    parser = FriendlyParser(prog="itr", description=line)
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    options = FriendlyParser(description=line)
    for name, text in lists.items():
        options.add_argument(name if name == positional else f"--{name}", nargs="+", type=str, help=text)
    options.add_function_arguments(function, skip={*lists})
    if opens_checkpoints:
        add_class_config(options)
    verbs.add_subcommand(arguments[0], options)
    values: dict[str, Any] = parser.parse_args(arguments)[arguments[0]].as_dict()
    return values


def add_class_config(options: ArgumentParser) -> None:
    """Add `--config`, for a verb that opens checkpoints and has no config of its own; `options_of` acts on it."""
    options.add_argument(
        CLASS_CONFIG,
        type=str,
        nargs="+",
        help="configs that name the checkpoint's user-defined classes, such as the run's config.yaml; their modules "
        "are imported, the settings come from the checkpoint",
    )


def options_of(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a verb without `--config`; the classes that it names are imported."""
    for config in values.pop(CLASS_CONFIG.removeprefix("--"), None) or ():
        import_config_classes(config)
    return values


def run_function(
    arguments: list[str], functions: dict[str, Callable[..., None]], what: str, description: str, positional: str = ""
) -> None:
    """Parse `itr VERB NAME [options]` as `parse_function` does, and call the function of that name."""
    name, values = parse_function(arguments, functions, what, description, positional)
    functions[name](**options_of(values))


def parse_function(
    arguments: list[str],
    functions: Mapping[str, Callable[..., object]],
    what: str,
    description: str,
    positional: str = "",
    common: Mapping[str, type] | None = None,
    opens_checkpoints: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Parse `itr VERB NAME [options]` into a name and the values of its options.

    Args:
        arguments: the command line, the verb first.
        functions: functions or classes by name; their arguments and docstrings make the options.
        what: what a name stands for, in capitals in the help.
        description: of the verb.
        positional: an argument that is given without its name.
        common: by name, a class whose arguments are further options.
        opens_checkpoints: add `--config`, see `add_class_config`.
    """
    verb = arguments[0]
    parser = FriendlyParser(prog="itr", description=description)
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    names = FriendlyParser(description=description)
    verbs.add_subcommand(verb, names)
    choices = names.add_subcommands(required=True, dest=what, metavar=what.upper())
    for name, function in functions.items():
        options = _options(function, positional, (common or {}).get(name))
        if opens_checkpoints:
            add_class_config(options)
        choices.add_subcommand(_key(name), options, help=options.description)
        options.prog = options.prog.replace(_key(name), name)
    given = [_key(argument) if argument in functions else argument for argument in arguments[1:2]]
    chosen = parser.parse_args([verb, *given, *arguments[2:]])[verb]
    name = next(name for name in functions if _key(name) == chosen[what])
    return name, chosen[chosen[what]].as_dict()


def _key(name: str) -> str:
    """The name by which the parser knows a function or a class path; to it a dot separates keys."""
    return name.replace(".", ":")


def _options(function: Callable[..., object], positional: str, shared: type | None) -> FriendlyParser:
    """The parser of one name's options; see `parse_function`."""
    options = FriendlyParser(description=next(iter((function.__doc__ or "").strip().splitlines()), ""))
    if positional:
        options.add_argument(positional, type=str)
    skip: set[str | int] = {positional} if positional else set()
    if shared:  # its arguments replace the parameter that takes an object of the class
        skip.update(signature(shared).parameters)
        skip.update(n for n, p in signature(function).parameters.items() if p.annotation == shared.__name__)
    if isclass(function):
        options.add_class_arguments(function, skip=skip)
    else:
        options.add_function_arguments(function, skip=skip)
    if shared:
        options.add_class_arguments(shared)
    return options
