"""Turns words on the command line into the arguments of a function, with jsonargparse.

A command is a plain function: its parameters are its options, its docstring is its help. What this file adds to
jsonargparse is small: a method is given by its registered name (``--method l1``) and the fields of its dataclass are
the flags ``--method.FIELD``; the fields of a `Pruning` are options of their own; a YAML file (``--config``) may hold
any of the options, and the command line overrides it; dashes and underscores in option names are one; every mistake
becomes one sentence.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from topiarist import methods
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import from_plain, from_yaml, read_yaml, shown, suggestion
from topiarist.pruning import Pruning, Steps

Command = Callable[..., object]


SHORT = {"method": "name", "repair": "name", "steps": "count"}
"""Option → its field that a value alone means: ``--method l1`` is ``--method.name l1``."""

REPEATED = ("input",)
"""Options that may be given several times; their values are joined by semicolons."""

REQUEST = tuple(entry.name for entry in dataclasses.fields(Pruning))
"""Options of a command that takes a `Pruning`."""


def parse(name: str, command: Command, words: Sequence[str]) -> dict[str, Any]:
    """Turns the words behind a command's name into its keyword arguments.

    Args:
        name: the command's name, for the help and the errors.
        command: the function; a parameter ``method`` becomes ``--method NAME --method.FIELD VALUE``, one of the type
            `Pruning` becomes one option for each of its fields.
        words: what was typed after the command's name.

    Returns:
        Parameter name → value; dataclasses are built, so their own checks have passed.

    Raises:
        TopiaristError: the command has no such option, a value is of the wrong type, or a file is not YAML.
    """
    _refuse_empty(words)
    typed, config = _split_config([_underscored(word) for word in words])
    options = _options(command)
    typed = _joined(typed, config)
    short = {key: field for key, field in SHORT.items() if key in options}
    for key, field in short.items():
        typed = [re.sub(rf"^--{key}(?==|$)", f"--{key}.{field}", word) for word in typed]
        if key in config and not isinstance(config[key], Mapping):
            config[key] = {field: config[key]}
    chosen = {key: _method_name(key, typed, config) for key, field in short.items() if field == "name"}
    for key, method in chosen.items():
        fields = {*config.get(key, ())} - {"name"}
        if method is None and (fields or any(re.match(rf"--{key}\.(?!name$)", word) for word in typed)):
            raise TopiaristError(f"--{key}.FIELD needs --{key} NAME as well: `topiarist methods` lists the names")
    if config:
        typed = ["--config", json.dumps(config), *typed]
    parser = _parser(name, command, chosen)
    values = _parse(parser, name, _lists_in_brackets(parser, typed))
    values.pop("config", None)
    return _built(command, values)


def _options(command: Command) -> tuple[str, ...]:
    """Returns the names of a command's options; a request stands for several."""
    hints = get_type_hints(command)
    names = ((REQUEST if hints[key] is Pruning else (key,)) for key in inspect.signature(command).parameters)
    return tuple(name for group in names for name in group)


def _refuse_empty(words: Sequence[str]) -> None:
    """Raises where a value is empty, as a shell's variable that is not set: it would be taken for a default."""
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if not value and equals and option.startswith("--"):
            raise TopiaristError(f"{shown(option)} has an empty value: give one, or leave the option out")
        if not word.strip():
            what = f"the value of {shown(before)}" if before.startswith("--") and "=" not in before else "an argument"
            raise TopiaristError(f"{what} is empty: give one, or leave it out")


def _underscored(word: str) -> str:
    """Writes ``--batch-size=8`` as ``--batch_size=8``: only the option's name, never its value or a glob in it."""
    option, equals, value = word.partition("=")
    field = re.fullmatch(r"--[a-z][a-z_-]*(\.[a-z][a-z_-]*)?", option)
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if field else word


def _split_config(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates ``--config FILE`` and ``--OPTION.FIELD.KEY VALUE`` from the other words, and returns them as a mapping.

    A key of a mapping may hold dots (``--budget.ratios.layer1.* 0.5``), which the parser would take for levels.
    Later files override earlier ones, and keys override files.
    """
    rest: list[str] = []
    config: dict[str, Any] = {}
    keys: list[tuple[str, str, str, str]] = []
    reading = iter(words)
    for word in reading:
        option, equals, value = word.partition("=")
        deep = re.fullmatch(r"--(\w+)\.(\w+)\.(.+)", option)
        if option == "--config" or deep:
            value = value if equals else next(reading, "")
        if option == "--config":
            config |= _read_config(value)
        elif deep:
            keys.append((deep[1], deep[2], deep[3], value))
        else:
            rest.append(word)
    for group, field, key, value in keys:
        fields = config.setdefault(group, {})
        if isinstance(fields, dict) and isinstance(fields.setdefault(field, {}), dict):
            fields[field][key] = _plain(value)
    return rest, config


def _joined(words: list[str], config: dict[str, Any]) -> list[str]:
    """Writes ``--input A --input B`` as ``--input A;B``, and a list in a file likewise."""
    for name in REPEATED:
        if isinstance(config.get(name), list):
            config[name] = ";".join(map(str, config[name]))
        rest: list[str] = []
        values: list[str] = []
        reading = iter(words)
        for word in reading:
            option, equals, value = word.partition("=")
            if option != f"--{name}":
                rest.append(word)
            elif equals or (value := next(reading, "")):
                values.append(value)
            else:
                rest.append(word)  # without a value, which the parser refuses
        words = [*rest, f"--{name}", ";".join(values)] if values else rest
    return words


def _plain(text: str) -> Any:
    """Reads a value as YAML; returns the text itself where it is not YAML, such as the glob ``*.bn``."""
    try:
        return from_yaml(text)
    except (ValueError, yaml.YAMLError):
        return text


def _lists_in_brackets(parser: Any, words: list[str]) -> list[str]:
    """Writes ``--budget.exclude conv1,fc*`` as ``--budget.exclude ["conv1", "fc*"]``, for options of several values."""
    lists = {
        f"--{action.dest}" for action in parser._actions if get_origin(getattr(action, "_typehint", None)) is tuple
    }
    done: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in lists and equals:
            done += [option, _bracketed(value)]
        else:
            done.append(_bracketed(word) if done and done[-1] in lists else word)
    return done


def _bracketed(value: str) -> str:
    return value if value.startswith("[") else json.dumps([_plain(part) for part in value.split(",")])


def _read_config(path: str) -> dict[str, Any]:
    if not path:
        raise TopiaristError("--config needs a value: give the path of a YAML file")
    example = "one option a line, such as 'epochs: 5'"
    options = read_yaml(Path(path), "the configuration", f"give a YAML file with {example}")
    if not isinstance(options, dict):
        raise TopiaristError(f"the configuration {path} must be a mapping: write {example}")
    return {str(key).replace("-", "_"): value for key, value in options.items()}


def _method_name(key: str, words: list[str], config: Mapping[str, Any]) -> str | None:
    """Returns a method's name, needed before the parser is made since it decides which flags there are."""
    for at, word in reversed(list(enumerate(words))):  # of several the parser takes the last
        option, equals, value = word.partition("=")
        if option == f"--{key}.name":
            return value if equals else next(iter(words[at + 1 : at + 2]), None)
    method = config.get(key)
    return str(method.get("name") or "") or None if isinstance(method, Mapping) else None


def _parser(name: str, command: Command, chosen: Mapping[str, str | None]) -> Any:
    from jsonargparse import ArgumentParser

    text = inspect.getdoc(command) or ""
    summary = text.partition("\n\nArgs:")[0]
    parameters, hints, documented = inspect.signature(command).parameters, get_type_hints(command), _documented(text)
    switches = [key for key in parameters if hints[key] is bool]
    positional = [key for key, at in parameters.items() if at.kind is not at.KEYWORD_ONLY]
    optional = [key for key in positional if parameters[key].default is None]
    several = [key for key in positional if get_origin(hints[key]) is list]
    requests = [key for key in parameters if hints[key] is Pruning]
    words = [f"[{key.upper()}]" if key in optional else key.upper() for key in positional]
    words = [f"{word} [...]" if key in several else word for key, word in zip(positional, words, strict=True)]
    parser = ArgumentParser(
        prog=f"topiarist {name}",
        usage=" ".join(["%(prog)s", *words, "[--OPTION VALUE ...]"]),
        description=summary,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for key in optional:
        parser.add_argument(key, type=hints[key], nargs="?", help=documented.get(key, ""))
    for key in several:
        parser.add_argument(key, type=get_args(hints[key])[0], nargs="+", help=documented.get(key, ""))
    by_hand = {*switches, *optional, *several, *requests, "method"}
    skipped: set[str | int] = {key for key in parameters if key in by_hand}
    parser.add_function_arguments(command, skip=skipped, as_positional=True)
    for group in parser._action_groups:
        if group.title == summary.rstrip("."):  # jsonargparse heads the options by the docstring, which stands above
            group.title = "arguments"
    if "method" in parameters:
        _add_method(
            parser, "method", chosen["method"], required=parameters["method"].default is inspect.Parameter.empty
        )
    if requests:
        _add_request(parser, chosen)
    for switch in switches:
        parser.add_argument(f"--{switch}", action="store_true", help=documented.get(switch, ""))
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    return parser


def _add_method(parser: Any, key: str, method: str | None, *, required: bool) -> None:
    """Adds the flag ``--KEY NAME``, and those of the fields of the method that was named."""
    more = "its fields are the flags below" if method else "its fields are flags too, see `topiarist methods NAME`"
    text = f"name of a method, in short --{key} NAME; {more}"
    parser.add_argument(f"--{key}.name", metavar="NAME", required=required, help=text)
    if method:
        parser.add_class_arguments(methods.get(method), key)


def _add_request(parser: Any, chosen: Mapping[str, str | None]) -> None:
    """Adds an option for each field of a `Pruning`; optional recipes are mappings."""
    documented = _documented(inspect.getdoc(Pruning) or "")
    recipe = dict[str, Any] | None
    _add_method(parser, "method", chosen["method"], required=True)
    parser.add_class_arguments(Budget, "budget", skip={"ratios", "exclude"})
    in_budget = _documented(inspect.getdoc(Budget) or "")  # in Python, names may be modules too
    parser.add_argument("--budget.ratios", type=Mapping[str, float], default={}, help=in_budget["ratios"])
    parser.add_argument("--budget.exclude", type=tuple[str, ...], default=(), help=in_budget["exclude"])
    _add_method(parser, "repair", chosen["repair"], required=False)
    parser.add_class_arguments(Steps, "steps", skip={"training"})
    between = "fields of the recipe that trains between two cuts, as --steps.training.epochs 1"
    parser.add_argument("--steps.training", type=recipe, default=None, help=between)
    parser.add_argument("--sparse_training", type=recipe, default=None, help=documented["sparse_training"])
    parser.add_argument("--outputs", type=tuple[str | int, ...], default=None, help=documented["outputs"])
    for flag in ("rewind", "allow_blind"):
        parser.add_argument(f"--{flag}", action="store_true", help=documented[flag])


def _documented(docstring: str) -> dict[str, str]:
    """Returns parameter → its line in the docstring, for those that are added by hand."""
    return dict(re.findall(r"^    (\w+): (.+)$", docstring, flags=re.MULTILINE))


def _parse(parser: Any, name: str, words: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    try:
        values: dict[str, Any] = parser.parse_args(words).as_dict()
    except ArgumentError as error:
        options = [option for action in parser._actions for option in action.option_strings]
        raise TopiaristError(_sentence(str(error), name, options)) from error
    return values


_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a word (a number in quotes)",
    "tuple": "values with commas between them",
    "Mapping": "a mapping of names to values",
}
"""Python's types in a user's words."""


def _sentence(message: str, name: str, options: list[str]) -> str:
    """Makes one sentence of jsonargparse's several lines."""
    text = " ".join(message.split())
    see = f"`topiarist {name} --help` lists the options"
    inner = re.search(r"Group '([^']+)' does not accept option '([^']+)'", text)
    unknown = inner or re.search(r"unrecognized arguments: (\S+)|(?:does not accept nested key|Option) '([^']+)'", text)
    if unknown:
        option = f"--{inner[1]}.{inner[2]}" if inner else unknown[1] or f"--{unknown[2]}"
        word = option.partition("=")[0]
        fields = [each for each in options if each.endswith(f".{word.lstrip('-')}")]
        return f"`topiarist {name}` has no option {option}: {suggestion((fields or [word])[0], options, see)}"
    alone = re.match(r"argument (\S+): expected one argument", text)
    if alone:
        return f"{alone[1].replace('.name', '')} needs a value: {see}"
    switch = re.match(r"argument (\S+): ignored explicit argument", text)
    if switch:
        return f"{switch[1]} takes no value: write {switch[1]} alone, or leave it out"
    missing = re.search(r"the following arguments are required: (.+)", text)
    if missing:
        keys = [key.removesuffix(".name") for key in missing[1].split(", ")]
        needed = " and ".join(f"--{key}" if f"--{key}" in [*options, "--method"] else key.upper() for key in keys)
        return f"`topiarist {name}` needs {needed}: {see}"
    key = re.match(r'Parser key "([^"]+)"', text)
    several = [option for option in options if key and option.startswith(f"--{key[1]}.")]
    if key and several:
        return f"--{key[1]} takes no value of its own: give {', '.join(several[:-1])} or {several[-1]}"
    if key:
        value = re.search(r"Given value: (\S.*)", text) or re.search(r"Got value: (\S.*)", text)
        kinds = re.findall(r"Expected an? <class '(?:[\w.]+\.)?(\w+)'>", text)
        choices = re.findall(r"Literal\[([^\]]+)\]", text)
        wanted = [_KINDS[kind] for kind in dict.fromkeys(kinds) if kind in _KINDS]
        wanted += [f"{{name: {_KINDS[kind]}}}" for kind in re.findall(r"dict\[str, (\w+)\]", text) if kind in _KINDS]
        wanted += ["a mapping of names to values, such as {epochs: 1}"] if "dict[str, typing.Any]" in text else []
        wanted += [f"one of {choice}" for choice in choices[:1]]
        given = value[1] if value else "this value"
        problem = f"must be {' or '.join(wanted)}, but got {given}" if wanted else f"cannot be {given}"
        return f"--{key[1]} {problem}: {see}"
    return f"{text.rstrip('.')}: {see}"


def _built(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """Builds dataclasses, the method and the request from the values of their options."""
    made = dict(values)
    for key, hint in get_type_hints(command).items():
        if hint is bool and not isinstance(values.get(key, False), bool):
            raise TopiaristError(f"--{key} must be true or false, but got {shown(values[key])}: correct it")
        if hint is Pruning:
            request = {name: made.pop(name) for name in REQUEST}
            if not request["repair"] or request["repair"]["name"] is None:
                request["repair"] = None
            made[key] = Pruning.from_json(request)
        elif key == "method" and isinstance(values.get(key), Mapping):
            made[key] = methods.make(values[key]) if values[key].get("name") else None
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and key in values:
            made[key] = from_plain(hint, values[key], f"--{key}")
    return made
