"""A third modality: a car's radar, with a toy encoder of its echoes."""

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from modeling_mm import MMConfig
from modeling_mm.modalities import Modality

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

    def forward(self, echoes: torch.Tensor, return_dict: bool | None = None) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.linear(echoes).tanh())


class CarConfig(MMConfig):
    """The one declaration: the encoder's config. The other fields of the modality have the usual defaults."""

    sub_configs = {**MMConfig.sub_configs, "radar_config": AutoConfig}
    radar_config: dict | PreTrainedConfig | None = None


RADAR = Modality(
    name="radar",
    tower="radar",
    inputs=("echoes",),
    dimensions=(2,),
    frame_axes=(2,),
    mask="echo_mask",
    states="radar_states",
    states_mask="radar_states_mask",
    token="<|radar|>",
    plural="radars",
    processor="radar_processor",
)
