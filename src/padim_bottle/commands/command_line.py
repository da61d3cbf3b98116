"""From the words of a command line to a typed function: its signature names the options, its docstring is the help."""

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import Parameter, cleandoc, signature
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import google

from padim_bottle import __version__
from padim_bottle.commands.arguments import Override
from padim_bottle.errors import run_command

VERBS = ("train", "sweep", "predict", "compare", "tune", "export", "report", "app")
Command = Callable[..., int | None]


def main() -> int:
    """Run ``padim-bottle VERB ...`` with the words of the process; return the exit code."""
    words = sys.argv[1:]
    if words and words[0] in VERBS:
        return run_verb(words[0], words[1:], program=f"padim-bottle {words[0]}")
    return run_command(lambda: _introduce(words))


def run_verb(verb: str, words: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command.

    Args:
        verb: one of ``VERBS``.
        words: the command line after the verb; that of the process if not given.
        program: what the help calls it; ``<verb>.py`` if not given.

    Returns:
        The exit code, see ``run_command``.
    """
    # At exit Python looks through every object of torch and its kin for garbage: more than a second for nothing.
    atexit.register(gc.freeze)
    # Read when torch is loaded. Its threads else wait for each other by computing nothing at full speed, which takes
    # the cores from the processes that read photos, and from whatever else the machine does.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = sys.argv[1:] if words is None else words
    return run_command(lambda: call(function_of(verb), given, program or f"{verb}.py"))


def function_of(verb: str) -> Command:
    """Return the function of a verb, which stands in a module of its own."""
    function: Command = getattr(import_module(f"padim_bottle.commands.{verb}_command"), verb)
    return function


def call(function: Command, words: Sequence[str], program: str) -> int:
    """Call a function with what a command line says.

    Its parameters are the options, ``batch_size`` is ``--batch-size``: a ``bool`` is a flag, a ``list`` takes several
    values, a ``Literal`` names the choices, any other type is called with the word, and what has no default must be
    given. ``*photos: str`` takes the words that are no options, ``*overrides: Override`` all that are not known.

    Args:
        function: its docstring, in Google's style, is the help; ``seed (NUMBER): ...`` names what an option takes.
        words: those after the program's name.
        program: what the help calls it.

    Returns:
        What the function returns, 0 for ``None``.

    Raises:
        SystemExit: the help was asked for (0), or the words are wrong (2).
    """
    hints = get_type_hints(function, include_extras=True)
    parser = _make_parser(function, hints, program)
    options, unknown = parser.parse_known_args(words)
    values = vars(options)
    rest = next((p.name for p in signature(function).parameters.values() if p.kind is Parameter.VAR_POSITIONAL), "")
    if unknown and hints.get(rest) is not Override:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return function(*values.pop(rest, unknown), **values) or 0


def _make_parser(function: Command, hints: dict[str, Any], program: str) -> argparse.ArgumentParser:
    text = cleandoc(function.__doc__ or "")
    entries = {entry.arg_name: entry for entry in google.parse(text).params}
    parser = _new_parser(program, text.partition("\n\nArgs:")[0])
    for name, parameter in signature(function).parameters.items():
        if hints[name] is Override:
            continue
        settings = _settings_of(hints[name])
        settings["help"] = " ".join((entries[name].description or "").split()).replace("%", "%%")
        if entries[name].type_name:
            settings["metavar"] = entries[name].type_name
        if parameter.kind is Parameter.VAR_POSITIONAL:
            parser.add_argument(name, nargs="*", **settings)
            continue
        if parameter.default is Parameter.empty:
            settings["required"] = True
        else:
            settings["default"] = parameter.default
            settings["help"] += " (default: %(default)s)" if parameter.default else ""
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser


def _settings_of(hint: Any) -> dict[str, Any]:
    """Return what argparse needs to know of a type."""
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is Annotated:
        return {"type": hint.__metadata__[0]}
    if get_origin(hint) is list:
        return {**_settings_of(get_args(hint)[0]), "nargs": "+", "action": "extend"}
    # Of ``int | None`` the first.
    return _settings_of(get_args(hint)[0]) if get_args(hint) else {"type": hint}


def _introduce(words: Sequence[str]) -> int:
    summaries = {verb: cleandoc(function_of(verb).__doc__ or "").partition("\n")[0] for verb in VERBS}
    listing = "\n".join(f"  {verb:<9}{summary}" for verb, summary in summaries.items())
    text = f"Anomaly detection in photos, from good ones alone: PaDiM with anomalib.\n\n{listing}"
    parser = _new_parser("padim-bottle", text, usage="padim-bottle VERB ...", epilog="padim-bottle VERB --help")
    parser.add_argument("--version", action="version", version=f"padim-bottle {__version__}")
    parser.parse_known_args(words)
    parser.error(f"name one of {', '.join(VERBS)}" + (f", not {words[0]!r}" if words else ""))


def _new_parser(program: str, description: str, **more: Any) -> argparse.ArgumentParser:
    """Return a parser that prints its text as it is written, and takes no abbreviated options."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(program, description=description, formatter_class=layout, allow_abbrev=False, **more)
