"""Tiny configs and inputs in the form that transformers' common tests ask for."""

import torch
from transformers import GPT2Config, ViTConfig, WhisperConfig

from modeling_mm.configuration_mm import MMConfig
from modeling_mm.modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel


class MMModelTester:
    """
    Args:
        parent: the test case.
        sees, hears: which towers the model has.
    """

    # Their training test looks for these.
    base_model_class = MMModel
    causal_lm_class = MMForConditionalGeneration
    sequence_classification_class = MMForSequenceClassification
    is_training = True

    # Their eager-sdpa test fills smaller batches up to 7 rows with random ids, which would lack the placeholders.
    batch_size = 7
    seq_length = 12
    vocab_size = 99
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2
    # Above 19, as their training text counts from 1 to 19; below 84, as their resizing test cuts ids off there.
    image_token_id, audio_token_id = 80, 81
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    image_size, patch_size = 16, 8
    num_mel_bins = 8
    audio_frames = 60

    def __init__(self, parent, sees: bool, hears: bool):
        self.parent = parent
        self.sees, self.hears = sees, hears
        # Dicts, as their feature tests read `num_hidden_layers` of a tower from one.
        self.text_config = {
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": 512,
            "n_embd": self.hidden_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "initializer_range": 0.2,  # wide enough for media to move logits by far more than any tolerance
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        }
        if sees:
            self.vision_config = {
                "model_type": "vit",
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 24,
            }
        if hears:
            self.audio_config = {
                "model_type": "whisper",
                "d_model": 16,
                "num_hidden_layers": 2,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 24,
                "decoder_ffn_dim": 24,
                "num_mel_bins": self.num_mel_bins,
                "max_source_positions": self.audio_frames // 2,
                "vocab_size": self.vocab_size,
                "pad_token_id": self.pad_token_id,
            }

    def get_config(self) -> MMConfig:
        return MMConfig(
            text_config=GPT2Config(**without_type(self.text_config)),
            vision_config=ViTConfig(**without_type(self.vision_config)) if self.sees else None,
            audio_config=WhisperConfig(**without_type(self.audio_config)) if self.hears else None,
            image_token_id=self.image_token_id if self.sees else None,
            audio_token_id=self.audio_token_id if self.hears else None,
            cross_attention_layers=[0, 1],
        )

    def prepare_config_and_inputs_for_common(self):
        """One image and one audio window a row, their placeholders behind the two tokens that padding tests mask."""
        input_ids = torch.randint(5, self.image_token_id, (self.batch_size, self.seq_length))
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if self.sees:
            input_ids[:, 2] = self.image_token_id
            inputs["pixel_values"] = torch.rand(self.batch_size, 1, 3, self.image_size, self.image_size)
        if self.hears:
            input_ids[:, 4] = self.audio_token_id
            inputs["input_features"] = torch.randn(self.batch_size, 1, self.num_mel_bins, self.audio_frames)
            # Row i ends 4 * i frames early.
            ends = self.audio_frames - 4 * torch.arange(self.batch_size)
            frames = torch.arange(self.audio_frames) < ends[:, None]  # (batch_size, audio_frames)
            inputs["feature_attention_mask"] = frames.long()[:, None]
        return self.get_config(), inputs


class MMSidesTester(MMModelTester):
    """Texts that hold no placeholders, beside images and audio: each modality is a side of retrieval."""

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"] = torch.randint(5, self.image_token_id, inputs["input_ids"].shape)
        return config, inputs


def without_type(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "model_type"}
