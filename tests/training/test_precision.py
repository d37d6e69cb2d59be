"""Half precision that a CPU only imitates is warned of."""

import pytest
import torch

from modeling_mm.training import precision
from tests.fakes.tiny_chats import chat_model, mm_trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def warnings(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == precision.__name__]
    caplog.clear()
    return found


@pytest.mark.parametrize("name, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_without_instructions_for_it_is_warned_of(name, dtype, monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_half_kernels", lambda asked: asked != dtype)
    precision.warn_of_slow_half(name, CPU)
    (line,) = warnings(caplog)
    assert f"no kernels for {name} on this CPU" in line and f"Leave {name} out" in line
    for quick, device in (("no", CPU), (name, GPU), ({"bf16": "fp16", "fp16": "bf16"}[name], CPU)):
        precision.warn_of_slow_half(quick, device)
        assert not warnings(caplog), (quick, device)


def test_the_trainer_warns_before_it_trains(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_half_kernels", lambda dtype: False)
    mm_trainer(chat_model(), tmp_path)
    assert not warnings(caplog)
    mm_trainer(chat_model(), tmp_path, bf16=True)
    assert len(warnings(caplog)) == 1
