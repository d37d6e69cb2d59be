"""processes.py alone: one process hears nobody, and errors keep their type."""

import pytest

from modeling_mm.search import Processes


def test_one_process_is_the_first_and_keeps_errors_as_they_are():
    processes = Processes()
    assert (processes.rank, processes.count, processes.is_main, processes.device) == (0, 1, True, None)
    assert processes.from_main(lambda: 3) == 3 and processes.gather("x") == ["x"]

    def missing():
        raise FileNotFoundError("no.jsonl")

    with pytest.raises(FileNotFoundError, match=r"no.jsonl"):
        processes.from_main(missing)
