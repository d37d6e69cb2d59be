# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Choose a subcommand, run its module, and turn errors into one line. Help and slips need no torch."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from .. import __version__
from ..utils.quiet import quiet_libraries
from .arguments import COMMANDS, Command


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run `modeling-mm` with the given arguments, by default those of the process.

    Returns:
        the exit code: 0; 1 if something failed, such as training that diverged; 2 if an argument, or what a file
        holds, is wrong; 130 after Ctrl-C; 141 if whoever reads the output has closed it.

    Example:
        >>> main(["ask", "model_cards/mm-whisper-tiny", "--image", "cat.png", "What is this?"])
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    name = options.command
    quiet_libraries()
    try:
        importlib.import_module(".checks", __package__).check_arguments(options)  # it reads YAML, of an extra
        code = importlib.import_module(f".{name}", __package__).run(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Python would say so again when it closes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says it
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        is_ours = isinstance(error, ImportError) and (error.name or "").startswith("modeling_mm")
        if options.traceback or is_ours:
            raise
        message = one_line(str(error))
        if isinstance(error, ImportError):
            message += f'. Install the extra: pip install "modeling_mm[{COMMANDS[name].extra}]"'
        print(f"modeling-mm {name}: {message}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1
    except KeyboardInterrupt:
        return 130


def one_line(text: str) -> str:
    """Return a message in one line; of an error in a worker of a data loader, whose text is a traceback, its last."""
    if "DataLoader worker" in text and "Traceback" in text:
        text = text.strip().splitlines()[-1]
    return " ".join(text.split())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the subcommand, then its own arguments, whose options may stand between positional ones."""
    name, rest = choose(
        "modeling-mm", "Train, ask and share models that read, see and hear.", "command", COMMANDS, arguments
    )
    command, path, chosen = COMMANDS[name], name, {"command": name}
    if command.actions:
        action, rest = choose(f"modeling-mm {name}", sentence(command.summary), "action", command.actions, rest)
        command, path, chosen = command.actions[action], f"{name} {action}", {**chosen, "action": action}
    parser = argparse.ArgumentParser(
        prog=f"modeling-mm {path}",
        description=sentence(command.summary),
        epilog="examples:\n" + "\n".join(f"  modeling-mm {path} {line}" for line in command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for names, settings in command.arguments:
        parser.add_argument(*names, **settings)
    parser.add_argument("--traceback", action="store_true", help="show the origin of an error")
    options = parser.parse_intermixed_args(rest)
    vars(options).update(chosen)
    return options


def choose(
    prog: str, description: str, what: str, commands: Mapping[str, Command], arguments: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the name of a subcommand and the arguments behind it."""
    width = max(14, *(len(name) + 2 for name in commands))
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"{what}s:\n" + "\n".join(f"  {name:{width}}{each.summary}" for name, each in commands.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"modeling_mm {__version__}")
    metavar = what.upper()
    parser.add_argument(
        what, metavar=metavar, choices=commands, help=f"one of these below; {metavar} --help lists its arguments"
    )
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(arguments)
    return getattr(given, what), given.rest


def sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."
