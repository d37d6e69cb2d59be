"""
pretraining_batch.py: two processes (gloo, CPU) compute the losses and the gradients of one with the whole batch.

Each row has at most one candidate for matching, in its own process, so that the pairs are the same. Processes lack
media, modalities or all but one row.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from modeling_mm import MMForPreTraining
from modeling_mm.pretraining_batch import draw_partners, mean_losses
from tests.fakes.ranks import join, launch_well
from tests.fakes.tiny import AUDIO, IMAGE, difference, inputs, opened, pad_text

WAITS = 300  # seconds
SEEN = [[1, IMAGE, 5, 6, 7], [2, IMAGE, 8, 9]]
HEARD = [[3, AUDIO, 10, 11, 12], [4, AUDIO, 13]]
READ = [[5, 14, 15, 16]]
# The rows of each process.
CASES = {
    "other modalities": (SEEN, [*HEARD, *READ]),
    "a process without media": (SEEN, [*READ, [6, 17, 18]]),
    "one row in a process": (SEEN[:1], [*HEARD, *READ]),
}
OFF = {"nothing": {}, "contrastive": {"contrastive_weight": 0}, "matching": {"matching_weight": 0}}


def batch(rows: list[list[int]], first: int, whole: list[list[int]]) -> dict:
    """Rows of a whole batch from the number `first` on, as the collator makes them."""
    answers = [[token for token in row[2:] if token < IMAGE] for row in rows]
    found = {name: value[first : first + len(rows)] for name, value in inputs(whole).items()}
    found = {name: value for name, value in found.items() if "input_ids" in name or there(rows, name)}
    ids, mask = found["input_ids"], found["attention_mask"].bool()
    found["labels"] = ids.masked_fill(~mask | (ids >= IMAGE) | (torch.arange(ids.shape[1]) < 2), -100)
    found["masked_targets"] = found["labels"].masked_fill(torch.arange(ids.shape[1]) != 2, -100)
    return found | {f"text_{name}": value for name, value in pad_text(answers).items()}


def there(rows: list[list[int]], name: str) -> bool:
    placeholder = {"pixel_values": IMAGE, "image_mask": IMAGE}.get(name, AUDIO)
    return name == "attention_mask" or any(placeholder in row for row in rows)


def build(**fields) -> MMForPreTraining:
    return opened(cls=MMForPreTraining, projection_dim=8, **fields).train()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def program(folder: Path) -> None:
    rank, cases = join(WAITS), {}
    for name, parts in CASES.items():
        for off, fields in OFF.items():
            parallel = DistributedDataParallel(build(**fields))
            output = parallel(**batch(parts[rank], rank * len(parts[0]), [*parts[0], *parts[1]]))
            output.loss.backward()
            means = {each: loss.detach().clone() for each, loss in output.losses.items()}
            for mean in means.values():
                distributed.all_reduce(mean)
            cases[f"{name}, {off}"] = [{each: mean / 2 for each, mean in means.items()}, gradients(parallel.module)]
    with pytest.raises(ValueError, match="no media") as error:
        build()(**batch(READ, 0, READ))
    torch.save(cases, folder / f"found.{rank}.pt")
    (folder / f"error.{rank}.json").write_text(json.dumps(str(error.value)))
    distributed.destroy_process_group()


@pytest.mark.timeout(900)
def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    launch_well(__file__, tmp_path, timeout=850)
    found = [torch.load(tmp_path / f"found.{rank}.pt", weights_only=True) for rank in range(2)]
    for name, parts in CASES.items():
        whole = [*parts[0], *parts[1]]
        for off, fields in OFF.items():
            model = build(**fields)
            output = model(**batch(whole, 0, whole))
            output.loss.backward()
            expected = gradients(model)
            for means, grads in (each[f"{name}, {off}"] for each in found):
                label = f"{name}, without {off}"
                assert set(means) == set(output.losses) and len(means) == 4 - len(fields)
                assert {each: abs(means[each] - loss).item() < 1e-5 for each, loss in output.losses.items()} == (
                    dict.fromkeys(means, True)
                ), label
                distances = {key: difference(grad, grads[key]) for key, grad in expected.items()}
                assert max(distances.values()) < 1e-5, (label, max(distances, key=distances.get))
    errors = [json.loads((tmp_path / f"error.{rank}.json").read_text()) for rank in range(2)]
    assert errors[0] == errors[1]


def test_a_mean_without_targets_is_zero():
    total = torch.zeros((), requires_grad=True)
    found = mean_losses({"matching": (total, torch.tensor(0)), "causal_lm": (total + 6, torch.tensor(3))})
    assert found["matching"].item() == 0 and found["causal_lm"].item() == 2
    assert mean_losses({}) == {}


def test_no_row_has_a_partner():
    rows, partners = draw_partners(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), is_hardest=False)
    assert rows.tolist() == partners.tolist() == []


if __name__ == "__main__":
    program(Path(sys.argv[1]))
