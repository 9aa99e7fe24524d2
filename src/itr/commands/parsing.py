"""Command lines and configs: one short message for a mistake, near matches, and configs shipped with the package."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.resources import files
from inspect import isabstract, signature
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from itr.component import Component, plain, subclasses
from itr.errors import UserError

MADE_WITH = "# made with "  # begins the line of a run's config.yaml that names the configs it came from
WHOLE = ("--model.backbone", "--model.objective")  # options whose file takes the place of what configs say
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null",
    "list": "a list", "tuple": "a list", "dict": "a dictionary",
}  # fmt: skip


def config_folder() -> Path:
    """Where the shipped configs lie: in the package once installed, at the top of the repository before."""
    packaged = Path(str(files("itr"))) / "configs"
    return packaged if packaged.is_dir() else Path(str(files("itr"))).parents[1] / "configs"


def find_config(name: str) -> str:
    """A config file by path, or by its name among the shipped ones.

    Raises:
        UserError: if there is neither; it names those that come close.
    """
    if Path(name).is_file():
        return name
    folder = config_folder()
    for candidate in (folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return str(candidate)
    shipped = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml"))]
    near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5) or [path for path in shipped if "/" not in path]
    raise UserError(f"there is no config file {name!r}, here or among the shipped ones; nearest: {', '.join(near)}")


def made_with(path: str) -> str:
    """The names of the configs that a run's `config.yaml` was made with; of any other config its own name."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    said = next((line for line in lines if line.startswith(MADE_WITH)), None)
    return Path(path).name if said is None else said.removeprefix(MADE_WITH)


def resolve_configs(arguments: list[str]) -> list[str]:
    """The same command line with shipped configs given by their path: `--config demo.yaml`, `--data=data/coco.yaml`."""

    def resolved() -> Iterator[str]:
        option = ""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if argument.startswith("-") and equals:
                yield from (f"{name}={given}" for given in _resolve(name, value))
            else:
                *before, last = _resolve(option, argument)
                yield from (text for given in before for text in (given, option))
                yield last
            option = argument

    return list(resolved())


def _resolve(option: str, value: str) -> list[str]:
    """What an option is given, one after another, in place of a name."""
    part = option.startswith(("--model", "--data")) and value.endswith(".yaml")
    config = option in ("--config", "-c")
    if not (part or config):
        return [value]
    path = find_config(value)
    content = _content(path)
    return [*(_defaults(content) if option in WHOLE else []), path]


def _content(path: str) -> Any:
    """What a config holds; UserError with file and line where it is no YAML."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise UserError(f"{path}{line} is no YAML: {error.problem or error.context}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as YAML: {error}") from None


def _defaults(part: Any) -> list[str]:
    """All settings of the class that a part selects, as the class has them.

    Given before the part, they make it stand for itself: the parser would lay it over what an earlier config says of
    the same class.
    """
    name = str(part.get("class_path") if isinstance(part, dict) else None)
    known = {cls.__name__: cls for cls in subclasses(Component)}
    if (cls := known.get(name.rpartition(".")[2])) is None:
        return []
    settings = {n: plain(p.default) for n, p in signature(cls).parameters.items() if p.default is not p.empty}
    return [json.dumps({"class_path": name, "init_args": settings})]


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


def run_verb(arguments: list[str], function: Callable[..., None]) -> None:
    """Parse `itr VERB [options]` and call the verb's function; its arguments and docstring make the options."""
    line = (function.__doc__ or "").strip().splitlines()[0]
    parser = FriendlyParser(prog="itr", description=line)
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    options = FriendlyParser(description=line)
    options.add_function_arguments(function)
    verbs.add_subcommand(arguments[0], options)
    function(**parser.parse_args(arguments)[arguments[0]].as_dict())


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
) -> tuple[str, dict[str, Any]]:
    """Parse `itr VERB NAME [options]` to a name and the values of its options.

    Args:
        arguments: the command line, the verb first.
        functions: by name; their arguments and docstrings make the options.
        what: what a name stands for, in capitals in the help.
        description: of the verb.
        positional: an argument that is given without its name.
        common: by name, a class whose arguments are options too, beside those of the function.
    """
    verb = arguments[0]
    parser = FriendlyParser(prog="itr", description=description)
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    names = FriendlyParser(description=description)
    verbs.add_subcommand(verb, names)
    choices = names.add_subcommands(required=True, dest=what, metavar=what.upper())
    for name, function in functions.items():
        line = (function.__doc__ or "").strip().splitlines()[0]
        options = FriendlyParser(description=line)
        if positional:
            options.add_argument(positional, type=str)
        shared = (common or {}).get(name)
        skip: set[str | int] = {positional} if positional else set()
        if shared:  # its arguments stand for themselves, and for a parameter that takes it whole
            skip.update(signature(shared).parameters)
            skip.update(n for n, p in signature(function).parameters.items() if p.annotation == shared.__name__)
        options.add_function_arguments(function, skip=skip)
        if shared:
            options.add_class_arguments(shared)
        choices.add_subcommand(name, options, help=line)
    chosen = parser.parse_args(arguments)[verb]
    return chosen[what], chosen[chosen[what]].as_dict()


def component_names() -> list[str]:
    """Names of all classes that a config can select so far."""
    return sorted({cls.__name__ for cls in subclasses(Component) if not isabstract(cls)})


def init_parameters(path: str) -> list[str]:
    """The arguments of a class given by its dotted path."""
    module, _, name = path.rpartition(".")
    return list(signature(getattr(import_module(module), name)).parameters)
