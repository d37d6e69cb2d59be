# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Bottlenecks of an autoencoder: a Gaussian posterior, a codebook of moving averages, or rounding to levels.

Not taken from vector-quantize-pytorch: in evaluation that library stops the gradient to the encoder, in training it
moves its codebook even where no gradient is recorded, and a released folder could not hold it.

Shape legend: N items, C latent channels, G the latents' grid: (rows, columns) of an image, (T,) of audio.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from .configuration_codec import MMCodecConfig
from .ranks import num_processes


@dataclass
class Bottleneck:
    """
    Latents after a bottleneck.

    Attributes:
        latents: (N, C, G), with gradients to the encoder
        loss: what training adds to the loss of the reconstruction
        codes: (N, G) int64, where there are any
        divergence: of the posterior from the prior, (N,) in nats, where there is a posterior
    """

    latents: torch.Tensor
    loss: torch.Tensor
    codes: torch.Tensor | None = None
    divergence: torch.Tensor | None = None


class GaussianBottleneck(nn.Module):
    """
    Posterior q(z|x) = N(mean, variance) with a diagonal variance; the prior is N(0, 1).

    Its input has the mean and the logarithm of the variance, (N, 2 * C, G). A forward draws a sample by
    reparameterization, in evaluation too, since an ELBO at the mean would be too high.
    """

    inputs_per_channel = 2
    steps: torch.Tensor

    def __init__(self, config: MMCodecConfig) -> None:
        super().__init__()
        self.kl_weight = config.kl_weight
        self.warmup_steps = config.kl_warmup_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def moments(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance, (N, C, G) each; the variance is held where exponentials are safe."""
        mean, log_variance = states.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def forward(self, states: torch.Tensor) -> Bottleneck:
        mean, log_variance = self.moments(states)
        # By shape: `randn_like` would draw other numbers for the layout that a convolution happens to choose.
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        sample = mean + torch.exp(0.5 * log_variance) * noise
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        return Bottleneck(sample, divergence.new_zeros(()), divergence=divergence)

    def beta(self) -> torch.Tensor:
        """Return the divergence's weight at this step of the warm-up."""
        if not self.training or self.warmup_steps == 0:
            return self.kl_weight * torch.ones_like(self.steps, dtype=torch.float32)
        return self.kl_weight * (self.steps / self.warmup_steps).clamp(max=1.0)

    def final(self, states: torch.Tensor) -> torch.Tensor:
        """Return the mean, (N, C, G)."""
        return self.moments(states)[0]


class VectorQuantizer(nn.Module):
    """
    Nearest vector of a codebook; gradients pass straight through.

    The codebook follows the latents of training batches by moving averages, and only where gradients are recorded.
    Codes that are hardly used are replaced by latents of the batch. The first batch gives the first codebook.
    The averages are those of the batches of all processes, which must all take part in a step, and the latents that
    become vectors are those of the first process.
    """

    inputs_per_channel = 1
    codebook: torch.Tensor
    uses: torch.Tensor
    sums: torch.Tensor
    is_started: torch.Tensor

    def __init__(self, config: MMCodecConfig) -> None:
        super().__init__()
        size, channels = config.codebook_size, config.latent_channels
        self.decay = config.codebook_decay
        self.commitment_weight = config.commitment_weight
        self.dead_code_threshold = config.dead_code_threshold
        self.register_buffer("codebook", torch.zeros(size, channels))
        self.register_buffer("uses", torch.ones(size))  # moving average of how often a batch uses each code
        self.register_buffer("sums", torch.zeros(size, channels))  # moving average of the sum of their latents
        self.register_buffer("is_started", torch.zeros((), dtype=torch.bool))

    def forward(self, states: torch.Tensor) -> Bottleneck:
        vectors = states.movedim(1, -1)  # (N, G, C)
        is_learning = self.training and torch.is_grad_enabled() and states.requires_grad
        if is_learning and not bool(self.is_started):
            self.start(vectors.detach().flatten(0, -2))
        codes = self.to_codes(states)
        quantized = self.to_latents(codes)
        loss = self.commitment_weight * nn.functional.mse_loss(states, quantized)
        if is_learning:  # after the lookup, so that the loss is that of the codebook as it was
            self.update(vectors.detach().flatten(0, -2).float(), codes.flatten())
        return Bottleneck(states + (quantized - states).detach(), loss, codes)

    def to_codes(self, states: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes, (N, G), of latents (N, C, G)."""
        vectors = states.movedim(1, -1).flatten(0, -2).float()  # (M, C)
        book = self.codebook.float()
        distances = book.pow(2).sum(1) - 2 * vectors @ book.T  # less the vector's norm
        return distances.argmin(1).view(states.shape[0], *states.shape[2:])

    def to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vectors of codes (N, G) as (N, C, G)."""
        return nn.functional.embedding(codes, self.codebook).movedim(-1, 1)

    def final(self, states: torch.Tensor) -> torch.Tensor:
        """Return the nearest vectors, (N, C, G)."""
        return self.to_latents(self.to_codes(states))

    @torch.no_grad()
    def start(self, vectors: torch.Tensor) -> None:
        """Take the codebook from latents (M, C), repeated with a little noise where they are fewer."""
        self.codebook.copy_(drawn_by_first(vectors, len(self.codebook)))
        self.sums.copy_(self.codebook)
        self.is_started.fill_(True)

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        """Move the codebook by a batch of latents (M, C) and their codes (M,), and replace dead codes."""
        uses = torch.zeros_like(self.uses).index_add_(0, codes, torch.ones_like(codes, dtype=self.uses.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors.to(self.sums.dtype))
        if num_processes() > 1:
            distributed.all_reduce(uses)
            distributed.all_reduce(sums)
        self.uses.lerp_(uses, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = (self.uses < self.dead_code_threshold).nonzero().flatten()
        if len(dead):
            self.sums[dead] = drawn_by_first(vectors, len(dead)).to(self.sums.dtype)
            self.uses[dead] = 1.0
        self.codebook.copy_(self.sums / self.uses.clamp(min=1e-5)[:, None])


def drawn_by_first(vectors: torch.Tensor, number: int) -> torch.Tensor:
    """
    Return random ones of latents (M, C), (number, C), the same in all processes: those of the first.

    Where there are fewer, each copy differs a little from the others.
    """
    order = torch.randperm(len(vectors), device=vectors.device)
    drawn = vectors[order.repeat(-(-number // len(vectors)))[:number]]
    spread = 1e-3 * vectors.std(0, correction=0) if number > len(vectors) else 0.0
    drawn = drawn + spread * torch.randn_like(drawn)
    if num_processes() > 1:
        distributed.broadcast(drawn, 0)
    return drawn


class FiniteScalarQuantizer(nn.Module):
    """
    Each channel rounded to one of a few levels, [Finite Scalar Quantization](https://arxiv.org/abs/2309.15505).

    A code is the number whose digits are the channels' levels, the first channel last. Nothing is learned, and no code
    can die.
    """

    inputs_per_channel = 1
    MARGIN = 1e-3  # keeps the outermost levels within reach of tanh

    def __init__(self, config: MMCodecConfig) -> None:
        super().__init__()
        self.levels = list(config.fsq_levels)

    def column(self, values: list[float], like: torch.Tensor) -> torch.Tensor:
        """Return a value for each channel in the shape (1, C, 1, ...) of latents (N, C, G)."""
        return torch.tensor(values, device=like.device, dtype=torch.float32).view(1, -1, *[1] * (like.ndim - 2))

    def forward(self, states: torch.Tensor) -> Bottleneck:
        digits = self.digits(states)
        codes = self.digits_to_codes(digits)
        return Bottleneck(self.scale(digits).to(states.dtype), states.new_zeros(()), codes)

    def digits(self, states: torch.Tensor) -> torch.Tensor:
        """Return levels around zero, (N, C, G): whole numbers, with the gradient of the bounded states."""
        half = self.column([(level - 1) * (1 + self.MARGIN) / 2 for level in self.levels], states)
        offset = self.column([0.5 if level % 2 == 0 else 0.0 for level in self.levels], states)
        bounded = torch.tanh(states.float() + torch.atanh(offset / half)) * half - offset
        return bounded + (bounded.round() - bounded).detach()

    def scale(self, digits: torch.Tensor) -> torch.Tensor:
        """Return latents from -1 to 1 of levels around zero."""
        return digits / self.column([level // 2 for level in self.levels], digits)

    def digits_to_codes(self, digits: torch.Tensor) -> torch.Tensor:
        """Return codes (N, G) of levels around zero, (N, C, G)."""
        shifted = digits.detach().round().long() + self.column([level // 2 for level in self.levels], digits).long()
        return (shifted * self.column(self.place_values(), digits).long()).sum(1)

    def place_values(self) -> list[float]:
        """Return how much one step of each channel adds to a code."""
        values = [1.0]
        for level in self.levels[:-1]:
            values.append(values[-1] * level)
        return values

    def to_codes(self, states: torch.Tensor) -> torch.Tensor:
        """Return the codes, (N, G), of latents (N, C, G) before rounding."""
        return self.digits_to_codes(self.digits(states))

    def to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the latents (N, C, G) of codes (N, G)."""
        like = codes[:, None]
        places = self.column(self.place_values(), like).long()
        levels = self.column([float(level) for level in self.levels], like).long()
        digits = (like // places) % levels - self.column([level // 2 for level in self.levels], like)
        return self.scale(digits)

    def final(self, states: torch.Tensor) -> torch.Tensor:
        """Return the rounded latents, (N, C, G)."""
        return self.scale(self.digits(states)).to(states.dtype)


BOTTLENECK_CLASSES: dict[str, Any] = {
    "kl": GaussianBottleneck,
    "vq": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
}
