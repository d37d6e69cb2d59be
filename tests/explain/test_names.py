"""Names of the methods where torch must not be imported: the command line's and the script's."""

from modeling_mm.cli import COMMANDS
from modeling_mm.explain import METHODS, NOTES


def test_the_command_line_knows_all_methods() -> None:
    (settings,) = (settings for names, settings in COMMANDS["ask"].arguments if names == ("--explain",))
    assert list(settings["choices"]) == list(METHODS) == list(NOTES)
