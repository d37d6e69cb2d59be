# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""VQ models behind the interface of [`ImageCodec`]: Emu3, Janus and Chameleon, and `VQModel` of diffusers."""

from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from .codec_interface import ImageCodec

# Shape legend as in codec_interface.py: N images, T codes, K = 1 codebook.


class SquareImageCodec(ImageCodec):
    """Codec of square images, with a grid that is `downsampling` times smaller."""

    def set_size(self, image_size: int | None, downsampling: int) -> None:
        """
        Set the image's size and the grid.

        Raises:
            ValueError: if the size is missing or is not divisible.
        """
        if image_size is None:
            raise ValueError(
                f"{type(self.model).__name__} takes images of any size: pass image_size, a multiple of {downsampling}."
            )
        if image_size <= 0 or image_size % downsampling:
            raise ValueError(f"image_size is {image_size}; expected a multiple of {downsampling}.")
        self.image_size = (image_size, image_size)
        self.grid = (image_size // downsampling, image_size // downsampling)

    def to_grid(self, codes: torch.Tensor) -> torch.Tensor:
        """Return codes (N, 1, T) as (N, rows, columns)."""
        return codes.reshape(len(codes), *self.grid)


class Emu3Codec(SquareImageCodec):
    """The VQ model of Emu3; an image is one frame of a video."""

    model_class = "Emu3VQVAE"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, image_size: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size = config.codebook_size
        self.set_size(image_size, 2 ** (len(config.channel_multiplier) - 1))

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([self.image_size] * len(images))
        return torch.stack(list(self.model.encode(images, image_sizes=sizes).image_tokens))

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.to_unit_range(self.model.decode(self.to_grid(codes)))


class JanusCodec(SquareImageCodec):
    """The VQ model of Janus, whose config fixes the grid."""

    model_class = "JanusVQVAE"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, image_size: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size = config.num_embeddings
        downsampling = 2 ** (len(config.channel_multiplier) - 1)
        size = config.num_patches * downsampling
        if image_size not in (None, size):
            raise ValueError(f"image_size is {image_size}; the grid of this JanusVQVAE is for images of {size}.")
        self.set_size(size, downsampling)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode(images).image_tokens

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.to_unit_range(self.model.decode(codes[:, 0]))


class ChameleonCodec(SquareImageCodec):
    """The VQ model of Chameleon, which transformers has without its decoder: it encodes only."""

    model_class = "ChameleonVQVAE"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, image_size: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size = config.num_embeddings
        self.set_size(image_size or config.resolution, 2 ** (len(config.channel_multiplier) - 1))

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode(images).image_tokens

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            "transformers has the encoder of ChameleonVQVAE alone, so its codes cannot be decoded. Use the codec of "
            "Emu3 or Janus, or an MMCodec, for models that write images."
        )


class MMImageCodec(SquareImageCodec):
    """An [`MMCodec`] of images."""

    option = None

    def __init__(self, model: nn.Module, config: PreTrainedConfig) -> None:
        super().__init__(model, config)
        self.codebook_size = config.codebook_size
        self.set_size(config.image_size, config.downsampling)

    @staticmethod
    def scale(images: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1 as they are, for the model scales them."""
        return images

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_codes(images)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode_codes(self.to_grid(codes))


class DiffusersCodec(SquareImageCodec):
    """The `VQModel` of diffusers, an extra: `pip install 'modeling_mm[diffusers]'`."""

    def __init__(self, model: nn.Module, config: dict[str, Any], image_size: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size = self.model.config.num_vq_embeddings
        downsampling = 2 ** (len(self.model.config.block_out_channels) - 1)
        self.set_size(image_size or self.model.config.sample_size, downsampling)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        _, _, (_, _, codes) = self.model.quantize(self.model.encode(images).latents)
        return codes

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        shape = (len(codes), *self.grid, self.model.quantize.vq_embed_dim)
        latents: torch.Tensor = codes.flatten()
        if not self.model.config.lookup_from_codebook:  # else `decode` looks them up by the shape
            latents = self.model.quantize.get_codebook_entry(latents, shape)
        return self.to_unit_range(self.model.decode(latents, force_not_quantize=True, shape=shape).sample)
