# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Choose a subcommand, run its module, and turn errors into one line. Help and slips need no torch."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..utils.quiet import quiet_libraries
from .arguments import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run `modeling-mm` with the given arguments, by default those of the process.

    Returns:
        the exit code: 0; 1 if something failed, such as training that diverged; 2 if an argument, or what a file
        holds, is wrong; 130 after Ctrl-C; 141 if whoever reads the output has closed it.

    Example:
        >>> main(["ask", "model_cards/mm-pocket", "--image", "cat.png", "What is this?"])
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
    parser = argparse.ArgumentParser(
        prog="modeling-mm",
        description="Train, ask and share models that read, see and hear.",
        epilog="commands:\n" + "\n".join(f"  {name:14}{each.summary}" for name, each in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"modeling_mm {__version__}")
    parser.add_argument(
        "command", metavar="COMMAND", choices=COMMANDS, help="one of these below; COMMAND --help lists its arguments"
    )
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(arguments)
    command = COMMANDS[given.command]
    parser = argparse.ArgumentParser(
        prog=f"modeling-mm {given.command}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog="examples:\n" + "\n".join(f"  modeling-mm {given.command} {line}" for line in command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for names, settings in command.arguments:
        parser.add_argument(*names, **settings)
    parser.add_argument("--traceback", action="store_true", help="show the origin of an error")
    options = parser.parse_intermixed_args(given.rest)
    options.command = given.command
    return options
