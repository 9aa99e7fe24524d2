"""The order of options: what the command line sets wins over files, wherever it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONFIG = ("--config", "-c")


@dataclass(frozen=True)
class Option:
    """An option of the command line with its value.

    Attributes:
        key: its name without dashes, such as `data.batch_size`; empty for an argument without a name.
        words: the arguments that it takes up.
    """

    key: str
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        """Its value; empty if it has none."""
        return self.words[1] if len(self.words) > 1 else self.words[0].partition("=")[2]


def options_in(arguments: Sequence[str]) -> list[Option]:
    """The options of a command line."""
    found: list[Option] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not (word.startswith("--") or word in CONFIG):
            found.append(Option("", (word,)))
            continue
        name = "--config" if word in CONFIG else word.partition("=")[0]
        takes_next = "=" not in word and rest and not rest[0].startswith("--")
        found.append(Option(name.removeprefix("--"), (word, rest.pop(0)) if takes_next else (word,)))
    return found


SPLIT = {  # the option of a verb that names a split; everywhere `--split` means it, and `--splits` too
    **dict.fromkeys(("features", "densify"), "--splits"),
    **dict.fromkeys(("embed", "report", "evaluate", "data"), "--split"),
    **{
        verb: f"--data.{stage}_split" for verb, stage in (("validate", "val"), ("test", "test"), ("predict", "predict"))
    },
}


OLD_NAMES = {"evaluate": {"--text_model": "--model", "--image_model": "--model"}}  # of options, by verb


def present_names(arguments: Sequence[str]) -> list[str]:
    """The same command line with the names that its verb has for a split, and for options that had another one."""
    verb = arguments[0] if arguments else ""
    present = dict(OLD_NAMES.get(verb, {}))
    if verb in SPLIT:
        present |= dict.fromkeys(("--split", "--splits"), SPLIT[verb])
    names = [argument.partition("=") for argument in arguments]
    return [present.get(name, name) + equals + value for name, equals, value in names]


def files_first(arguments: Sequence[str]) -> list[str]:
    """The same command line, in the right order for a parser in which the last setting wins.

    All `--config` come first and refine one another in order. An option for a whole part, such as `--data FILE` or
    `--model.backbone CLASS`, comes before the options for settings inside it. Options that append to a list keep
    their place, since the options after one belong to what it appends.

    Args:
        arguments: the command line, the verb first.
    """
    options = options_in(arguments)
    verb = options[:1] if options and not options[0].key else []
    placed = [*verb, *(option for option in options if option.key == "config")]
    for option in options[len(verb) :]:
        if option.key == "config":
            continue
        inside = f"{option.key}."
        at = next((i for i, other in enumerate(placed) if option.key and other.key.startswith(inside)), len(placed))
        placed.insert(at, option)
    return [word for option in placed for word in option.words]
