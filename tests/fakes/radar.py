"""A third modality: a car's radar, with a toy encoder of its echoes. One row, and one registered encoder."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from modeling_mm.modalities import MODALITIES, Modality, register_modality, unregister_modality

SENSORS, STEPS = 4, 6


class RadarConfig(PreTrainedConfig):
    model_type = "toy_radar"
    hidden_size: int = 12


class RadarEncoder(PreTrainedModel):
    """Echoes of a car's radar over time, (N, T, sensors) -> (N, T, W)."""

    config_class = RadarConfig
    main_input_name = "echoes"

    def __init__(self, config: RadarConfig):
        super().__init__(config)
        self.linear = nn.Linear(SENSORS, config.hidden_size)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"echoes": torch.zeros(1, 1, SENSORS)}

    def forward(self, echoes: torch.Tensor, return_dict: bool | None = None) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.linear(echoes).tanh())


RADAR = Modality("radar", inputs=("echoes",), dimensions=(2,), frame_axes=(2,), mask="echo_mask")


@contextmanager
def radar_registered() -> Iterator[Modality]:
    """Register the modality and its encoder, and take the modality out again."""
    AutoConfig.register("toy_radar", RadarConfig, exist_ok=True)
    AutoModel.register(RadarConfig, RadarEncoder, exist_ok=True)
    register_modality(RADAR)
    try:
        yield RADAR
    finally:
        if RADAR.name in MODALITIES:
            unregister_modality(RADAR.name)
