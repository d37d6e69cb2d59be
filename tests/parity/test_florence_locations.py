"""Location tokens are those of Florence-2, by transformers' own class."""

import math
import random

import torch
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

from modeling_mm.boxes import bins_to_place, place_to_bins


def test_bins_are_those_of_florence():
    theirs = Florence2PostProcessor.__new__(Florence2PostProcessor)  # without its tokenizer
    theirs.quantize_bins = (1000, 1000)
    draw = random.Random(0)
    for _ in range(200):
        size = (draw.randrange(20, 2000), draw.randrange(20, 2000))
        x, y = (sorted(draw.uniform(0, side) for _ in range(2)) for side in size)
        place = (x[0], y[0], x[1], y[1])
        bins = place_to_bins(place, size)
        assert theirs.quantize(torch.tensor([place], dtype=torch.float64), size).tolist() == [bins]
        if bins[0] != bins[2] and bins[1] != bins[3]:  # it cuts places to whole pixels, where such boxes are empty
            ours = [math.floor(each) for each in bins_to_place(bins, size)]
            assert theirs.dequantize(torch.tensor([bins], dtype=torch.float64), size).tolist() == [ours]
