"""Command lines: one short message for a mistake, with near matches."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import isabstract, isclass, signature
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from itr.commands.config_files import import_config_classes
from itr.component import Component, subclasses

CLASS_CONFIG = "--config"
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null",
    "list": "a list", "tuple": "a list", "dict": "a dictionary",
}  # fmt: skip


class FriendlyParser(ArgumentParser):
    """A parser whose errors are a line or two: what is wrong, and what may have been meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An option cut short is a typing error like any other.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say `message` and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        text = re.sub(r"\n\s*\n+", "\n", str(message)).strip()
        if missing := re.search(r"arguments are required: (.*)|expected \"(.*?)\" to be one of", text):
            parser, text = self._missing((missing[1] or missing[2]).split(", "))
        hint = parser._hint(text) if isinstance(parser, FriendlyParser) else ""
        program = parser.prog.replace(" [options]", "")
        self.exit(2, f"itr: error: {in_words(text)}{hint}\n`{program} --help` lists the options.\n")
        raise AssertionError("exit returned")

    def _missing(self, keys: list[str]) -> tuple[ArgumentParser, str]:
        """The parser of the verb, or of its part, that lacks these keys, and what to say."""
        parser: Any = self
        *verbs, _ = keys[0].split(".")
        while verbs and parser._subcommands_action and verbs[0] in parser._subcommands_action.choices:
            parser = parser._subcommands_action.choices[verbs.pop(0)]
        names = [key.rpartition(".")[2] for key in keys]
        if parser._subcommands_action and names == [parser._subcommands_action.dest.rpartition(".")[2]]:
            return parser, f"give {names[0].upper()}, one of {', '.join(parser._subcommands_action.choices)}"
        options = parser.known_options()
        return parser, f"give {' and '.join(f'--{n}' if n in options else n.upper() for n in names)}"

    def _hint(self, text: str) -> str:
        """A line with what may have been meant, if anything comes close."""
        near: list[str] = []
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", text):
            near = difflib.get_close_matches(choice[1], re.findall(r"'(.*?)'", choice[2]), n=1)
        elif option := re.search(r"class_path '([\w.]+)'[\s\S]*?[Oo]ption '(\w+)' is not accepted", text):
            near = difflib.get_close_matches(option[2], init_parameters(option[1]), n=2)
        elif name := re.search(r"Expected a dot import path string: (\w+)", text):
            near = difflib.get_close_matches(name[1], component_names(), n=2)
        elif config := re.match(r"unrecognized arguments: (\S+\.ya?ml)", text):
            near = [f"--config {config[1]}"]
        elif folder := re.match(r"Parser key \"data\":\s+Unable to load config '(.*)'", text):
            near = [f"--data.root {folder[1]}"]
        elif unknown := re.search(r"(?:--|[Kk]ey ['\"]|does not accept option ')([\w.-]+)", text):
            options = self.known_options()
            if unknown[1] not in options:
                near = ["--" + name for name in difflib.get_close_matches(unknown[1], options, n=3, cutoff=0.7)]
        return f"\nDid you mean {' or '.join(near)}?" if near else ""

    def known_options(self) -> list[str]:
        """Names of all options, with dots and without dashes."""
        found: dict[str, None] = {}
        for action in self._actions:
            for option in getattr(action, "option_strings", []):
                found[option.lstrip("-").rstrip("+")] = None
        return list(found)


def in_words(text: str) -> str:
    """What a parser says of a value of the wrong type, in a line; anything else as it is."""
    union = (
        r"Does not validate against any of the Union subtypes\s+Subtypes: .*\s+"
        r"Errors:\s+(?P<all>(?:- Expected an? .*\s+)+)Given value type: .*\s+Given value: "
    )
    said = re.fullmatch(
        rf"""Parser key "(?P<key>[\w.]+)":\s+(?:{union}|Expected an? (?P<one>.+)\. Got value: )(?P<value>.*)""", text
    )
    if said is None:
        return text
    expected = re.findall(r"- Expected an? (.*)", said["all"]) if said["all"] else [said["one"]]
    kinds: dict[str, None] = {}
    for kind in expected:
        literals = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
        name = re.sub(r"<class '([\w.]+)'>", r"\1", kind)
        found = [item.strip(" '\"") for item in literals[1].split(",")] if literals else [KINDS.get(name, name)]
        kinds.update(dict.fromkeys(found))
    *others, last = kinds
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"{said['key']} is {said['value']}; it must be {wanted}"


def run_verb(arguments: list[str], function: Callable[..., None], opens_checkpoints: bool = False) -> None:
    """Parse `itr VERB [options]` and call the verb's function; its arguments and docstring make the options.

    Args:
        arguments: the command line, the verb first.
        function: what runs the verb.
        opens_checkpoints: add `--config`, see `add_class_config`.
    """
    line = (function.__doc__ or "").strip().splitlines()[0]
    parser = FriendlyParser(prog="itr", description=line)
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    options = FriendlyParser(description=line)
    options.add_function_arguments(function)
    if opens_checkpoints:
        add_class_config(options)
    verbs.add_subcommand(arguments[0], options)
    function(**options_of(parser.parse_args(arguments)[arguments[0]]))


def add_class_config(options: ArgumentParser) -> None:
    """Add `--config`, for a verb that opens checkpoints and has no config of its own; `options_of` acts on it."""
    options.add_argument(
        CLASS_CONFIG,
        type=str,
        nargs="+",
        help="configs that name the checkpoint's user-defined classes, such as the run's config.yaml; their modules "
        "are imported, the settings come from the checkpoint",
    )


def options_of(parsed: Namespace) -> dict[str, Any]:
    """The options of a verb by name. The classes that `--config` names are imported, and it is removed."""
    values = parsed.as_dict()
    for config in values.pop(CLASS_CONFIG.removeprefix("--"), None) or ():
        import_config_classes(config)
    return values


def run_function(
    arguments: list[str], functions: dict[str, Callable[..., None]], what: str, description: str, positional: str = ""
) -> None:
    """Parse `itr VERB NAME [options]` as `parse_function` does, and call the function of that name."""
    name, values = parse_function(arguments, functions, what, description, positional)
    functions[name](**values)


def parse_function(
    arguments: list[str],
    functions: Mapping[str, Callable[..., object]],
    what: str,
    description: str,
    positional: str = "",
    common: Mapping[str, type] | None = None,
    opens_checkpoints: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Parse `itr VERB NAME [options]` to a name and the values of its options.

    Args:
        arguments: the command line, the verb first.
        functions: functions or classes by name; their arguments and docstrings make the options.
        what: what a name stands for, in capitals in the help.
        description: of the verb.
        positional: an argument that is given without its name.
        common: by name, a class whose arguments are options too, beside those of the function.
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
    return name, options_of(chosen[chosen[what]])


def _key(name: str) -> str:
    """The name by which the parser knows a function or a class path; to it a dot separates keys."""
    return name.replace(".", ":")


def _options(function: Callable[..., object], positional: str, shared: type | None) -> FriendlyParser:
    """The parser of one name's options; see `parse_function`."""
    options = FriendlyParser(description=next(iter((function.__doc__ or "").strip().splitlines()), ""))
    if positional:
        options.add_argument(positional, type=str)
    skip: set[str | int] = {positional} if positional else set()
    if shared:  # its arguments stand for themselves, and for a parameter that takes it whole
        skip.update(signature(shared).parameters)
        skip.update(n for n, p in signature(function).parameters.items() if p.annotation == shared.__name__)
    if isclass(function):
        options.add_class_arguments(function, skip=skip)
    else:
        options.add_function_arguments(function, skip=skip)
    if shared:
        options.add_class_arguments(shared)
    return options


def component_names() -> list[str]:
    """Names of all classes that a config can select so far."""
    return sorted({cls.__name__ for cls in subclasses(Component) if not isabstract(cls)})


def init_parameters(path: str) -> list[str]:
    """The arguments of a class given by its dotted path."""
    module, _, name = path.rpartition(".")
    return list(signature(getattr(import_module(module), name)).parameters)
