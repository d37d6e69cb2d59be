"""Bars in a terminal, lines elsewhere."""

import sys

import pytest
from tqdm import tqdm

from modeling_mm.utils import progress
from modeling_mm.utils.progress import ProgressLines, show_progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_terminal_has_a_bar_and_a_pipe_has_lines(monkeypatch):
    assert isinstance(show_progress(range(2), desc="x", disable=True), ProgressLines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(show_progress(range(2), desc="x", disable=True), tqdm)


def test_a_line_is_written_every_ten_seconds_and_at_the_end(clock, capsys):
    for _ in show_progress(range(5), desc="encoding images"):
        clock[0] += 4
    assert capsys.readouterr().err.splitlines() == ["encoding images: 3 of 5, 12 s", "encoding images: 5 of 5, 20 s"]


def test_what_is_counted_by_hand_and_what_it_ends_with(clock, capsys):
    with show_progress(total=100, desc="answering", leave=False) as lines:
        clock[0] = 11
        lines.set_postfix({"loss": "1.20"})
        lines.update(40)
        lines.update(60)
    assert capsys.readouterr().err.splitlines() == [
        "answering: 40 of 100, 11 s, loss 1.20",
        "answering: 100 of 100, 11 s, loss 1.20",
    ]


def test_nothing_is_written_where_it_is_turned_off_or_nothing_was_done(clock, capsys):
    list(show_progress(range(5), desc="cleaning", disable=True))
    with show_progress(total=3, desc="cleaning"):
        pass
    list(show_progress(iter("ab"), desc="cleaning"))
    assert capsys.readouterr().err.splitlines() == ["cleaning: 2, 0 s"], "a stream has no length"
