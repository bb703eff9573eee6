"""What the command lines share: one-sentence errors, exit statuses, signals, texts turned into values."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from deeplight.engine.core.environment import environment_trouble
from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.wording import in_flags

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic only since click 8.4
    _ParamType = click.ParamType

DEBUG_VARIABLE = "DEEPLIGHT_DEBUG"


def run_cli(run: click.Command | Callable[[], Any], go_on: str = "") -> NoReturn:
    """Run a click command, or a function without arguments, as a program and exit.

    go_on: how to go on after an interruption, added to its message.
    Exit status: 0 done (or what `run` returns), 1 failed, 2 bad usage or input, 130 or 143 interrupted.
    Errors are one line on stderr, `error: sentence`; DEEPLIGHT_DEBUG=1 adds the traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name or a unit that the terminal cannot show is no failure
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals_raise():
            result = run.main(standalone_mode=False) if isinstance(run, click.Command) else run()
        sys.stdout.flush()
        status = result if isinstance(result, int) else 0
    except BaseException as error:
        status = _report(error, go_on)
    sys.exit(status)


def one_line(text: str) -> str:
    """Text with line breaks and other characters that cannot be printed as escapes, as \\n: names may hold them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _report(error: BaseException, go_on: str) -> int:
    """Say what went wrong; returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    message, status = explained(error)
    if status in {128 + number for number in _SIGNALS} and go_on:
        message = f"{message}: {go_on}"
    with contextlib.suppress(OSError):
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    return status


def explained(error: BaseException) -> tuple[str, int]:
    """(sentence, exit status) of an exception."""
    if isinstance(error, DeepLightError | Interrupted):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split()), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return str(Interrupted(signal.SIGINT)), 128 + signal.SIGINT
    if isinstance(error, MemoryError):
        return "the memory is full: use smaller --tiles, or free some memory", 1
    if isinstance(error, OSError) and error.errno == errno.EIO and error.filename is None:
        # what a terminal that is closed says to who writes to it, perhaps before the signal arrives
        return str(Interrupted(signal.SIGHUP)), 128 + signal.SIGHUP
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    trouble = environment_trouble(error)
    if trouble is not None:
        return trouble, InputError.exit_code
    hint = f"set {DEBUG_VARIABLE}=1 for the traceback and report it"
    return f"unexpected {type(error).__name__} ({error}): this is a defect, {hint}", 1


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What interrupts: a key, another process, and a terminal that is closed."""
_AGAIN_S = 0.1
"""How long after an interruption, and how often, it is asked whether it is still on its way."""


class _Raising:
    """Raises Interrupted for the first signal, and for it again where that was lost on its way."""

    def __init__(self) -> None:
        self._number = 0
        self._raised: weakref.ref[Interrupted] | None = None
        self._restore: Callable[[], None] = lambda: None

    def first(self, number: int, _frame: FrameType | None) -> None:
        """Handle one of _SIGNALS."""
        if self._raised is None:
            self._number = number
            self._look_again()
            raise self._made()

    def end(self) -> None:
        """No longer ask whether the interruption was lost."""
        self._restore()

    def _look_again(self) -> None:
        before = signal.signal(signal.SIGALRM, self._again)
        signal.siginterrupt(signal.SIGALRM, False)
        timer = signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)

        def restore() -> None:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, before)

        self._restore = restore

    def _again(self, _number: int, _frame: FrameType | None) -> None:
        if self._raised is not None and self._raised() is None:
            raise self._made()

    def _made(self) -> Interrupted:
        error = Interrupted(self._number)
        self._raised = weakref.ref(error)
        return error


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread, once: a second leaves cleaning up alone. SIGHUP
    stays ignored where it is, as under nohup.

    Code in C may clear an exception that comes within it (NumPy's Generator.choice does). One that nobody holds any
    more while the block goes on was lost, and is raised again.
    """
    raising = _Raising()
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    caught = [number for number in _SIGNALS if number != signal.SIGHUP or not ignored]
    previous = {number: signal.signal(number, raising.first) for number in caught}
    try:
        yield
    finally:
        raising.end()
        for number, old in previous.items():
            signal.signal(number, old)


class Parsed(_ParamType):
    """A click parameter whose text a function turns into a value; its ValueError is the error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that a text stands for. Ends with a usage error where it stands for none."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Real(click.FloatRange):
    """A number within limits; click lets "nan" through every limit, and "inf" through those that are open."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that a text stands for. Ends with a usage error where it is none that is finite and in range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that can be used: give a finite one", param, ctx)
        return number


class Command(click.Command):
    """A click command that refuses an option with a value given twice, of which click would take the last in silence.

    Options that are declared with multiple=True may be repeated, and flags, which say the same twice. Errors, which the
    library words in parameters, are told in flags.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a DeepLightError that it raises names flags."""
        try:
            return super().invoke(ctx)
        except DeepLightError as error:
            error.args = (in_flags(str(error), flags_of(self)),)
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. Raises UsageError for an option that is repeated."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        for option in self.params:
            single = isinstance(option, click.Option) and not (
                option.multiple or option.is_flag or option.count
            )
            if single and order.count(option) > 1:
                raise click.UsageError(self._repeated(option, order.count(option)), ctx)
        return super().parse_args(ctx, args)

    def _repeated(self, option: click.Parameter, times: int) -> str:
        """The sentence, with the option that takes several where there is one: --dmo has --dmo-band."""
        name = option.opts[-1]
        several = next((p for p in self.params if p.multiple and p.opts[0].startswith(f"{name}-")), None)
        remedy = "" if several is None else f", or repeat {several.opts[0]} {several.metavar or ''}".rstrip()
        return f"{name} is given {times} times and takes one value: give it once{remedy}"


def flags_of(command: click.Command) -> dict[str, str]:
    """Parameter → flag of a command, by the function's name for it and by the flag's own."""
    flags = {}
    for option in command.params:
        for flag in option.opts:
            flags[flag.lstrip("-").replace("-", "_")] = flag
        flags[str(option.name)] = option.opts[0]
    return flags


def told_in_flags() -> Callable[[str], str]:
    """What turns the parameters of a message into flags of the command that runs."""
    context = click.get_current_context(silent=True)
    flags = {} if context is None else flags_of(context.command)
    return lambda text: in_flags(text, flags)


class Group(click.Group):
    """A click group whose commands are of `Command`."""

    command_class = Command


def parse_folder(text: str) -> Path:
    """The path of a folder. Raises ValueError where the text is empty, which Path would take for the current one."""
    if not text.strip():
        raise ValueError("the name of the folder is empty: give one, or . for the current folder")
    return Path(text)


def parse_file(text: str) -> Path:
    """The path of a file to write. Raises ValueError where the text is empty."""
    if not text.strip():
        raise ValueError("the name of the file is empty: give one")
    return Path(text)


@contextlib.contextmanager
def logging_to(say: Callable[[str], None]) -> Iterator[None]:
    """Send what the package logs, from INFO on, to `say`, one line each, and nowhere else: libraries add handlers. A
    command that runs has its flags in place of parameters."""
    handler = _Forward(say, told_in_flags())
    logger = logging.getLogger("deeplight")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Forward(logging.Handler):
    def __init__(self, say: Callable[[str], None], told: Callable[[str], str]) -> None:
        super().__init__(logging.INFO)
        self._say, self._told = say, told

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._say(prefix + one_line(self._told(record.getMessage())))
