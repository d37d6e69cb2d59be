"""The benchmark with tiny models: each row measures both sides, the work is counted, results are written."""

import json
import math
import re

import pytest
import torch
import transformers

from modeling_mm.cli import main
from modeling_mm.cli.arguments import BENCHMARKS
from modeling_mm.cli.benchmark import ROWS, Bench, Result, Work
from modeling_mm.cli.benchmark import machine as machine_module
from modeling_mm.cli.benchmark import models as models_of_benchmark
from modeling_mm.cli.benchmark.machine import Machine
from modeling_mm.cli.benchmark.work import Phase, decoding_work, weights_of
from tests.fakes.tiny import gpt2_config, vit_config, whisper_config


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """With tiny models in the place of those of 124M parameters, and a quick measurement of the machine."""
    monkeypatch.setattr(models_of_benchmark, "GPT2Config", gpt2_config)
    monkeypatch.setattr(models_of_benchmark, "ViTConfig", vit_config)
    monkeypatch.setattr(models_of_benchmark, "WhisperConfig", lambda **_: whisper_config())
    monkeypatch.setattr("modeling_mm.cli.benchmark.machine.BANDWIDTH_BYTES", 2**20)
    monkeypatch.setattr("modeling_mm.cli.benchmark.machine.MATRIX_SIZE", 32)


def measure(*arguments: str) -> int:
    return main(["benchmark", *arguments, "--tokens", "2", "--repeats", "1", "--device", "cpu"])


def test_every_row_has_its_name_in_the_help():
    assert list(ROWS) == list(BENCHMARKS)


@pytest.mark.parametrize(
    ("part", "peer", "kinds"), [("text", "GPT2LMHeadModel", 2), ("speech", "WhisperForConditionalGeneration", 3)]
)
def test_the_benchmark_measures_a_part(capsys, part, peer, kinds):
    assert measure(part) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * kinds
    for line in lines[1:]:
        assert re.search(rf"{peer} .* ratio \d+\.\d+ \(\d.* to \d.*, target at least", line)
        assert re.search(rf"Gop; of the machine's limit ours \d+%, {peer} \d+%", line)


def test_the_benchmark_measures_steps_of_pre_training(capsys):
    assert measure("pretraining") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2
    for line, kind in zip(lines[1:], ("trained", "frozen"), strict=True):
        assert re.match(rf"pre-training, vision encoder {kind} .* ratio \d+\.\d+ .*target at most 2\.2\)", line)


def test_the_benchmark_measures_the_loss_and_its_memory(capsys):
    assert measure("loss") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [bool(re.search(r"ratio \d+\.\d+ .*target at", line)) for line in lines] == [True, True]
    assert "MB at the peak" in lines[0]


@pytest.mark.parametrize(
    ("part", "lines"),
    [("questions", 3), ("media", 6), ("training", 4), ("cached", 1), ("mixed", 1), ("packed", 1), ("processor", 4)],
)
def test_the_benchmark_measures_media_and_batches(part, lines, capsys, monkeypatch):
    monkeypatch.setattr("modeling_mm.cli.benchmark.processing.ITEMS", 2)
    monkeypatch.setattr("modeling_mm.cli.benchmark.reuse.MEDIA_TOKENS", (2, 4, 8, 16))
    assert measure(part) == 0
    printed = capsys.readouterr().out.splitlines()[1:]
    assert len(printed) == lines and all(re.search(r"ratio \d+\.\d+ ", line) for line in printed)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["image", "hearing", "export", "import", "load", "convert"])
def test_the_benchmark_measures_every_other_part(part, capsys, monkeypatch):
    monkeypatch.setattr("modeling_mm.cli.benchmark.loading.GPT2_LARGE", {})
    assert measure(part) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and all(re.search(r"ratio \d+\.\d+ ", line) for line in lines[1:])


def test_the_encoder_of_full_size_can_be_built(monkeypatch):
    monkeypatch.setattr(models_of_benchmark, "WhisperConfig", transformers.WhisperConfig)
    with torch.device("meta"):
        encoder = transformers.WhisperModel(models_of_benchmark.whisper_base()).encoder
    assert 19e6 < sum(parameter.numel() for parameter in encoder.parameters()) < 22e6


def test_results_are_written_with_the_machine_and_the_versions(tmp_path):
    path = tmp_path / "new" / "cpu.json"
    assert measure("text", "--json", str(path)) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["device"] == "cpu" and written["threads"] == torch.get_num_threads() and written["machine"]
    assert written["versions"]["torch"] == torch.__version__ and (written["tokens"], written["repeats"]) == (2, 1)
    assert written["limits"]["bandwidth_bytes_s"] > 0 and set(written["limits"]["matrix_operations_s"]) == {
        "float32",
        "bfloat16",
    }
    assert [row["label"] for row in written["rows"]["text"]] == [
        f"text only, {kind}, batch {batch}" for kind in ("float32", "bfloat16") for batch in (1, 8)
    ]
    row = written["rows"]["text"][0]
    assert row["ratio"] == row["ratios"][0] and row["spread"] == [row["ratio"]] * 2 and row["work"]["bytes"] > 0


def test_a_part_that_does_not_exist_is_refused_with_the_list(capsys):
    assert main(["benchmark", "nothing"]) == 2
    assert f"Expected {', '.join(BENCHMARKS)}." in capsys.readouterr().err


def test_a_result_tells_the_median_of_its_ratios_and_its_quartiles():
    result = Result("a", "b", "s", 1.0, 2.0, [1.0, 5.0, 2.0, 3.0, 4.0], target=3.0)
    assert (result.ratio, result.spread, result.is_reached) == (3.0, (2.0, 4.0), True)
    assert "ratio 3.000 (2.00 to 4.00, target at least 3.0)" in result.line()
    assert not Result("a", "b", "s", 1.0, 2.0, [1.2], target=1.1, is_at_most=True).is_reached


def test_both_sides_run_in_turn_after_a_warm_up():
    calls = []
    bench = Bench(Machine("cpu"), tokens=1, repeats=2)
    bench.compare("a", "b", lambda: calls.append("ours"), lambda: calls.append("peer"), target=1.0)
    assert calls == ["ours", "peer"] * 3


def test_the_least_time_is_that_of_the_slower_of_memory_and_arithmetic_in_each_phase():
    work = Work((Phase(bytes=10, operations=1), Phase(bytes=1, operations=40, times=3)))
    assert work.seconds(bandwidth=5, rate=20) == 10 / 5 + 3 * (40 / 20)
    assert (work.bytes, work.operations) == (13, 121)


def test_the_rate_of_matrices_is_that_of_the_quickest_kernel(monkeypatch):
    monkeypatch.setattr(machine_module, "MATRIX_SIZE", 256)
    monkeypatch.setattr(machine_module, "multiplies", lambda left, right: False)
    plain = Machine("cpu").matrix_rate(torch.float32)
    monkeypatch.setattr(machine_module, "multiplies", lambda left, right: True)
    monkeypatch.setattr(machine_module, "product", lambda left, right: None)
    assert Machine("cpu").matrix_rate(torch.float32) > 5 * plain


def test_the_work_of_decoding_counts_each_weight_once_a_step():
    """The head is tied to the embedding: its bytes are read, those of the lookup are not."""
    model = models_of_benchmark.captioner(gpt2_config(), vit_config())
    decoder = model.model.language_model
    work = decoding_work(model, rows=1, prompt=1, tokens=3)
    step = work.phases[-1]
    weights = sum(p.numel() for name, p in decoder.named_parameters() if "wpe" not in name)
    unread = sum(p.numel() for name, p in decoder.named_parameters() if ".cross_attn.c_attn." in name)
    cached = 2 * decoder.wte.embedding_dim * len(decoder.h) * 2.5
    assert step.times == 2 and step.bytes == 4 * (weights - unread + cached)
    with_media = decoding_work(model, rows=2, prompt=1, tokens=3, media_tokens=5, encoder_tokens=5)
    assert len(with_media.phases) == 4
    tower, connector = model.model.vision_tower, model.model.vision_connector
    assert with_media.phases[0].bytes == weights_of(tower, connector).bytes


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux keeps a record of a process's peak that is set back")
def test_the_peak_of_a_call_is_that_of_its_largest_tensors():
    def allocate() -> None:
        torch.ones(2**24).sum()  # 64 MiB

    machine = Machine("cpu")
    machine.peak(allocate)
    assert math.isclose(machine.peak(allocate), 2**26, rel_tol=0.1)
    assert machine.peak(lambda: None) < 2**22


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux keeps a record of a process's peak that is set back")
def test_memory_that_an_earlier_call_has_freed_is_counted_again():
    held = []

    def allocate() -> None:
        held.extend(torch.ones(2**12) for _ in range(2**12))  # 64 MiB in small pieces, which are not mapped alone
        last = torch.ones(2**12)  # behind them, so that what they leave is no end that shrinks by itself
        held.clear()
        held.append(last)

    machine = Machine("cpu")
    allocate()
    assert math.isclose(machine.peak(allocate), 2**26, rel_tol=0.2)
