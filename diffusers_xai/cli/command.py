"""What every command shares: its errors, which become one line on stderr and exit code 2, and Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace


_MOST = 600  # characters of an error: libraries list whole registries


def run(argv: list[str]) -> int:
    """Runs the command line of these arguments; returns the exit code, as of [`main`]."""
    args = SimpleNamespace(debug="--debug" in argv, kept=lambda args: "nothing was written")
    with _interruptions() as interrupted:
        try:
            import warnings

            from diffusers_xai.cli.base import Console
            from diffusers_xai.cli.parser import make_parser

            make_parser().parse_args(argv, args)
            args.console = Console(quiet=args.quiet, json=args.json)
            with warnings.catch_warnings():
                if not args.debug:
                    warnings.simplefilter("ignore")
                args.run(args)
        except (KeyboardInterrupt, Exception) as error:
            # What an interruption was turned into, by an import say, is one too.
            if isinstance(error, KeyboardInterrupt) or interrupted:
                print(f"diffusers-xai: interrupted, {args.kept(args)}", file=sys.stderr)
                return 130
            if args.debug:
                raise
            print(f"diffusers-xai: error: {_one_line(error)}", file=sys.stderr)
            return 2
    return 0


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Notes Ctrl-C in the list before it raises `KeyboardInterrupt`. Where the parent has it ignored, it stays so."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _one_line(error: Exception) -> str:
    """The error's text, without its period; of one that is not known to be meant for the user with its type."""
    from diffusers_xai.cli.base import CommandError

    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    text = text if len(text) <= _MOST else f"{text[:_MOST]} … (--debug shows all of it)"
    meant = (CommandError, ValueError, KeyError, TypeError, RuntimeError, OSError, ArithmeticError)
    if isinstance(error, meant) and text:
        return text.removesuffix(".")
    return f"{type(error).__name__}: {text or 'without a text'} (--debug shows where)"
