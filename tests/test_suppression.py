# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Tokens that are suppressed by their ids: the same scores as transformers' processors give, at every length."""

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopKLogitsWarper,
)

from modeling_mm.suppression import RULES, SuppressByIds, suppress_by_ids
from tests.fakes.tiny import AUDIO, IMAGE, draw, inputs, opened

PROCESSORS = {
    "always": lambda: SuppressTokensLogitsProcessor([3, 7, 200]),
    "at the beginning": lambda: SuppressTokensAtBeginLogitsProcessor([3, 7, 200], 4),
    "until a length": lambda: MinLengthLogitsProcessor(5, [3, 7]),
    "until some are new": lambda: MinNewTokensLengthLogitsProcessor(2, 3, 7),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_scores_are_those_of_transformers(name):
    stock, scores = PROCESSORS[name](), draw(2, 30, seed=1)
    quick = LogitsProcessorList([stock])
    suppress_by_ids(quick)
    assert type(quick[0]) is SuppressByIds
    changed = 0
    for length in range(2, 8):
        ids = torch.zeros(2, length, dtype=torch.long)
        wanted = stock(ids, scores.clone())
        assert torch.equal(quick[0](ids, scores), wanted), length
        changed += int(wanted.isinf().any())
    assert changed == {"always": 6, "at the beginning": 1}.get(name, 3)
    assert len({type(make()) for make in PROCESSORS.values()}) == len(RULES)


def test_a_rule_that_is_changed_between_steps_is_followed():
    stock, scores = PROCESSORS["at the beginning"](), draw(1, 30, seed=2)
    quick = SuppressByIds(stock)
    stock.set_begin_index(6)
    assert not quick(torch.zeros(1, 4, dtype=torch.long), scores).isinf().any()
    assert quick(torch.zeros(1, 6, dtype=torch.long), scores).isinf().sum() == 2


def test_generate_uses_them_and_leaves_others(monkeypatch):
    model, batch, seen = opened(), inputs([[5, IMAGE, 6, AUDIO, 7], [8, 9]], side="left"), []
    prepare = type(model)._get_logits_processor

    def recorded(self, *args, **kwargs):
        seen.append(prepare(self, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(type(model), "_get_logits_processor", recorded)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "begin_suppress_tokens": [9]}
    plain = model.generate(**batch, **options)
    assert {type(each.rule) for each in seen[0] if type(each) is SuppressByIds} == set(RULES) - {
        SuppressTokensLogitsProcessor
    }
    suppressed = plain[0, -6:].tolist()[:2]
    other = model.generate(**batch, **options, suppress_tokens=suppressed, logits_processor=[TopKLogitsWarper(5)])
    assert not set(suppressed) & set(other[:, -6:].flatten().tolist())
    assert TopKLogitsWarper in [type(each) for each in seen[1]]
