"""workshop/faster_whisper.py: two sides on the same clips in turn, and where the seconds go."""

import json
import os
import time

import numpy as np
import pytest
import soundfile
import torch

from scripts.workshop import faster_whisper, faster_whisper_run
from scripts.workshop.faster_whisper_run import (
    OURS,
    PARTS,
    PEER,
    RATE,
    SideProcess,
    Transcriber,
    draw_clips,
    seconds_by_part,
    table,
    transcribe_in_turn,
)

CLIPS = [np.full(RATE // 100, value, dtype=np.float32) for value in (0.1, 0.2)]


def side(name, calls):
    """A side that notes its calls with the first sample, and changes the samples that it is given."""

    def note(value):
        calls.append((name, round(float(value[0]), 1)))
        value[:] = 0
        return f" {name} "

    parts = [lambda value, step=step: calls.append((name, step)) or value for step in PARTS]
    return Transcriber(note, tuple(parts))


def test_each_clip_is_transcribed_by_both_sides_before_the_next():
    calls = []
    texts, seconds = transcribe_in_turn({name: side(name, calls) for name in "ab"}, CLIPS)
    assert calls == [("a", 0.1), ("b", 0.1), *[(name, clip) for clip in (0.1, 0.2) for name in "ab"]]
    assert texts == {"a": ["a", "a"], "b": ["b", "b"]}
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}
    assert CLIPS[0][0] == np.float32(0.1)  # a side was given a copy


def test_each_part_takes_what_the_one_before_gives():
    calls = []
    steps = [lambda value, add=add: calls.append(value if isinstance(value, int) else 0) or add for add in (1, 2, 3)]
    spent = seconds_by_part({"a": Transcriber(str, tuple(steps))}, CLIPS)
    assert calls == [0, 1, 2] * 2
    assert set(spent["a"]) == set(PARTS) and all(value > 0 for value in spent["a"].values())


def waiting(seconds):
    """A side that tells its process and its number of threads, and whose parts wait."""
    parts = [lambda value: time.sleep(seconds) or value] * len(PARTS)
    return Transcriber(lambda samples: f"{os.getpid()} {torch.get_num_threads()} {samples[0]:.1f}", tuple(parts))


def test_each_side_works_in_one_process_apart_from_the_other():
    sides = {name: SideProcess(waiting, seconds) for name, seconds in (("a", 0.0), ("b", 0.02))}
    with sides["a"].pool, sides["b"].pool:
        texts, _ = transcribe_in_turn(sides, CLIPS)
        spent = seconds_by_part(sides, CLIPS)
    said = {name: [text.split() for text in found] for name, found in texts.items()}
    assert len({os.getpid(), *(int(process) for found in said.values() for process, *_ in found)}) == 3
    threads = str(torch.get_num_threads())
    assert [words[1:] for found in said.values() for words in found] == [
        [threads, clip] for clip in ("0.1", "0.2")
    ] * 2
    assert all(value >= 2 * 0.02 for value in spent["b"].values())  # two clips, timed where they are transcribed


def test_clips_of_some_words_are_drawn_from_all_splits(tmp_path):
    said = {"train": ["one two three", "hello"], "validation": ["four five six"], "test_prompts": ["seven eight nine"]}
    for split, texts in said.items():
        (tmp_path / split).mkdir()
        lines = []
        for number, text in enumerate(texts):
            soundfile.write(tmp_path / split / f"{number}.wav", np.full(80, 0.1), 8000)
            lines.append(json.dumps({"file_name": f"{number}.wav", "text": text}))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    clips, truths = draw_clips(tmp_path, 100)
    assert sorted(truths) == ["four five six", "one two three", "seven eight nine"]
    assert [len(clip) for clip in clips] == [160] * 3  # at 16 kHz
    assert draw_clips(tmp_path, 2)[1] == draw_clips(tmp_path, 2)[1] and len(draw_clips(tmp_path, 2)[1]) == 2


def test_the_table_has_a_row_for_each_side_and_the_ratio():
    by_part = dict.fromkeys(PARTS, 1.0)
    figures = {
        "clips": 3,
        "audio_seconds": 9.5,
        "speed_ratio": 0.75,
        "speed_quartiles": [0.7, 0.75, 0.8],
        "seconds": {OURS: 4.0, PEER: 3.0},
        "spoken_wer": {OURS: 0.02, PEER: 0.03},
        "seconds_by_part": {OURS: by_part, PEER: by_part},
    }
    lines = table(figures).splitlines()
    assert lines[2] == f"| {OURS} | 4.0 | 0.020 | 1.0 | 1.0 | 1.0 |" and PEER in lines[3]
    assert lines[-1] == "3 clips, 10 s: 0.75 times as fast (0.70 to 0.80; wanted 0.8)"


def test_without_the_peer_it_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(faster_whisper, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["faster_whisper"])
    monkeypatch.setattr(faster_whisper_run, "compare", lambda arguments: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as end:
        faster_whisper.main()
    assert end.value.code == 2 and "pip install 'faster-whisper>=1.2,<2'" in capsys.readouterr().err
