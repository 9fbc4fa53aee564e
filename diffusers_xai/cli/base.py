"""What all commands share: how their arguments are read, how they fail, how they speak."""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol


PROGRAM = "diffusers-xai"
_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # how tqdm goes back to the line of an outer bar
_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


class CommandError(Exception):
    """A request that cannot be met; the text is for the user."""


class Parser(argparse.ArgumentParser):
    """A parser of whole option names, each at most once, whose errors are [`CommandError`]s.

    `more_help` makes the last part of the help, when the help is asked for.
    """

    more_help: Callable[[], str] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def format_help(self) -> str:
        """The help, with its last part."""
        if self.more_help is not None:
            self.epilog = self.more_help()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises instead of leaving the process."""
        raise CommandError(f"{message} (see `{self.prog} --help`)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and "--" in arg_strings:  # which argparse would take for no value at all
            raise argparse.ArgumentError(action, "expected a value, got '--'")
        return super()._get_values(action, arg_strings)


class Commands(Protocol):
    """The commands of a parser, which each adds itself to."""

    def add_parser(self, name: str, **settings: Any) -> Parser:
        """A parser for the command's arguments."""


class _StoreOnce(argparse._StoreAction):
    given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if self.given:
            raise argparse.ArgumentError(self, "expected once, got it several times")
        self.given = True
        super().__call__(parser, namespace, values, option_string)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command has."""
    add = parser.add_argument
    add("--json", action="store_true", help="print the result as one JSON object")
    add("--quiet", action="store_true", help="print the result and errors only")
    add("--debug", action="store_true", help="show tracebacks and the warnings of libraries")


@dataclass(frozen=True)
class Console:
    """Where a command speaks: the result on stdout, how far the work is on stderr.

    Args:
        quiet (`bool`): Leaves stderr to errors.
        json (`bool`): The result is one JSON object instead of text.
    """

    quiet: bool = False
    json: bool = False

    def say(self, text: str) -> None:
        """Tells how far the work is."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def result(self, text: str, facts: Mapping[str, Any]) -> None:
        """Prints what came of the command: `text`, or `facts` as JSON."""
        try:
            print(json.dumps(facts, ensure_ascii=False) if self.json else text, flush=True)
        except BrokenPipeError:  # who reads has enough, as `head` does; Python would flush once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def bar_options(self, description: str) -> dict[str, Any]:
        """How tqdm shows progress: as a bar on a terminal, as a line every ten seconds elsewhere."""
        if self.quiet:
            return {"disable": True}
        if sys.stderr.isatty():
            return {"disable": False, "desc": description}
        return {
            "disable": False,
            "desc": description,
            "file": _Lines(),
            "mininterval": _LINE_SECONDS,
            "bar_format": "{desc}: {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left",
        }


class _Lines(io.TextIOBase):
    """Turns what tqdm redraws in place into lines on stderr, each once."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> int:
        line = _CURSOR.sub("", text).strip("\r\n ")
        if line and line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line
        return len(text)
