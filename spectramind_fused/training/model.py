"""The model: a small MLP that predicts mean and sigma of every bin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectramind_fused.training.data import Spectra

_SIGMA_FLOOR = 1e-3  # in standard deviations of the training spectra


class SpectrumMLP(nn.Module):
    """Linear, LayerNorm, GELU for each hidden layer, then one Linear for mean and sigma.

    Args:
        channels: width of the input, [n, channels].
        bins: width of each output, mean and sigma [n, bins].
        hidden: widths of the hidden layers.
    """

    def __init__(self, channels: int, bins: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), nn.LayerNorm(next_width), nn.GELU()]
            width = next_width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 2 * bins)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma, both [n, bins]."""
        mean, raw = self.head(self.layers(inputs)).float().chunk(2, dim=-1)
        return mean, nn.functional.softplus(raw) + _SIGMA_FLOOR


def gll(mean: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """Gaussian negative log likelihood per bin, averaged; lower is better."""
    return nn.functional.gaussian_nll_loss(mean, target, sigma.square(), full=True, eps=1e-12)


def calibration(mean: Tensor, sigma: Tensor, target: Tensor) -> dict[str, float]:
    """How well sigma tells the error, over all bins.

    Returns:
        The share of bins whose target lies within one and within two sigma (0.683 and 0.954
        for a calibrated Gaussian), and the root mean square of the error in sigmas (1).
    """
    z = (target - mean) / sigma
    return {
        "within 1 sigma": (z.abs() < 1).float().mean().item(),
        "within 2 sigma": (z.abs() < 2).float().mean().item(),
        "rms of error / sigma": z.square().mean().sqrt().item(),
    }


def baselines(spectra: Spectra, edges: Tensor) -> dict[str, float]:
    """What needs no training: val/gll of two simple predictions.

    Args:
        spectra: the data.
        edges: first bin of each channel, and the end.

    Returns:
        For "mean and std": every spectrum is the training mean. For "interpolation": the
        channels, interpolated, with the training residual's mean and sigma per bin.
    """
    train, validation = spectra.train_targets, spectra.validation_targets
    return {
        "mean and std": gll(train.mean(0), train.std(0), validation).item(),
        "interpolation": gll(*interpolation(spectra, edges), validation).item(),
    }


def interpolation(spectra: Spectra, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sigma of the baseline of this name for the validation part, each [n, bins]."""
    bins = spectra.train_targets.shape[1]
    residual = spectra.train_targets - _interpolated(spectra.train_inputs, edges, bins)
    mean = _interpolated(spectra.validation_inputs, edges, bins) + residual.mean(0)
    return mean, residual.std(0).expand_as(mean)


def _interpolated(channels: Tensor, edges: Tensor, bins: int) -> Tensor:
    """Linear interpolation between the channels' centres, [n, bins]; constant outside."""
    centres = (edges[:-1] + edges[1:] - 1).float() / 2
    at = torch.arange(bins, dtype=torch.float32).clamp(centres[0], centres[-1])
    right = torch.searchsorted(centres, at).clamp(1, len(centres) - 1)
    weight = (at - centres[right - 1]) / (centres[right] - centres[right - 1])
    return torch.lerp(channels[:, right - 1], channels[:, right], weight)
