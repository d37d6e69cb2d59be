"""
contrastive.py: two processes (gloo, CPU) compute the loss and the gradients of one with the whole batch.

Their batches hold different numbers of rows; one of them lacks a side, or rows of one.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from modeling_mm import MMForRetrieval
from modeling_mm.contrastive import RetrievalLoss, contrastive_loss, gather, shared_sides
from tests.fakes.ranks import join, launch_well
from tests.fakes.tiny import difference, image, opened, pad_audio, pad_images, pad_text, sound

TEXTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [8, 9], [15, 16]]  # the second row's again, in another process
IMAGES = [[image(row)] for row in range(5)]
WAITS = 300  # seconds
# Audio of each row; the rows of each process.
CASES = {
    "every side": ([True] * 5, [2, 3]),
    "some rows": ([True, False, True, True, False], [3, 2]),
    "a process without audio": ([True, True, True, False, False], [3, 2]),
    "one row in a process": ([True] * 5, [1, 4]),
}
KINDS = ("infonce", "sigmoid")


def batch(has_audio: list[bool], rows: slice) -> dict:
    audio = [[sound(row)] if there else [] for row, there in enumerate(has_audio)][rows]
    found = pad_text(TEXTS[rows]) | pad_images(IMAGES[rows]) | (pad_audio(audio) if any(audio) else {})
    return found | {"return_loss": True}


def build(kind: str) -> MMForRetrieval:
    return opened(cls=MMForRetrieval, projection_dim=8, retrieval_loss=kind, matryoshka_dims=[3]).train()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def program(folder: Path) -> None:
    rank, cases = join(WAITS), {}
    for kind in KINDS:
        for name, (has_audio, sizes) in CASES.items():
            for cached in (None, 1) if kind == "infonce" else (None,):
                model = build(kind)
                model.set_gradient_cache(cached)
                rows = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], 5)
                parallel = DistributedDataParallel(model)  # it averages gradients as long as it lives
                loss = parallel(**batch(has_audio, rows)).loss
                loss.backward()
                mean = loss.detach().clone()
                distributed.all_reduce(mean)
                cases[f"{kind}, {name}, {cached}"] = [mean / 2, gradients(model)]
    refused = build("infonce")
    with pytest.raises(ValueError, match="InfoNCE needs at least 2 rows") as error:
        refused(**pad_text(TEXTS[:1]), **({} if rank else pad_images(IMAGES[:1])), return_loss=True)
    with pytest.raises(ValueError, match="sharded") as sharded:
        shared_sides({"text": [True]} if rank else {"image": [True]}, torch.device("cpu"), is_sharded=True)
    torch.save(cases, folder / f"found.{rank}.pt")
    (folder / f"errors.{rank}.json").write_text(json.dumps([str(error.value), str(sharded.value)]))
    distributed.destroy_process_group()


@pytest.mark.timeout(900)
def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    launch_well(__file__, tmp_path, timeout=850)
    found = [torch.load(tmp_path / f"found.{rank}.pt", weights_only=True) for rank in range(2)]
    assert len(found[0]) == 12
    for kind in KINDS:
        for name, (has_audio, _) in CASES.items():
            model = build(kind)
            loss = model(**batch(has_audio, slice(None))).loss
            loss.backward()
            expected = gradients(model)
            for label in [key for key in found[0] if key.startswith(f"{kind}, {name},")]:
                for mean, grads in (each[label] for each in found):
                    assert abs(mean.item() - loss.item()) < 1e-5, label
                    off = {key: difference(grad, grads[key]) for key, grad in expected.items()}
                    assert max(off.values()) < 1e-5, (label, max(off, key=off.get))
    errors = [json.loads((tmp_path / f"errors.{rank}.json").read_text()) for rank in range(2)]
    assert errors[0] == errors[1] and "1 of image" in errors[0][0]


def test_one_process_gathers_its_rows_alone():
    rows = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(gather(rows), rows[None])
    shared = shared_sides({"text": [True, True], "image": [False, False]}, torch.device("cpu"))
    assert (shared.names, shared.rows) == (("text",), 2)
    with pytest.raises(ValueError, match="the batch has rows: 2 of text"):
        contrastive_loss(
            {"text": rows[:2]}, {"text": [True] * 2}, {}, shared, RetrievalLoss("infonce", torch.ones(()))
        )


if __name__ == "__main__":
    program(Path(sys.argv[1]))
