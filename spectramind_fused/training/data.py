"""The task: from 32 coarse noisy channels of a spectrum to mean and sigma of all 283 bins."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from spectramind_fused.config.check import ConfigError
from spectramind_fused.training.settings import DataSettings

_BLOCK = 20  # consecutive spectra are near-duplicates: they are split together
_WINDOW = (950.0, 1500.0)  # cm^-1; a jump of the detector lies outside


@dataclass(frozen=True)
class Spectra:
    """Inputs [n, channels] and targets [n, bins], standardised by the training part's figures.

    Attributes:
        axis: wavenumber (cm^-1) or wavelength (micrometres) of each bin.
        axis_name: what `axis` is, with its unit.
        quantity: what a spectrum's values are.
        source: where the spectra come from, and what of them is ours.
    """

    train_inputs: Tensor
    train_targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    axis: np.ndarray
    axis_name: str
    quantity: str
    source: str


def load_spectra(settings: DataSettings) -> Spectra:
    """Loads, splits and standardises the spectra that `data.name` names.

    Raises:
        ConfigError: the package that ships them is not installed.
    """
    if settings.name == "spectra":
        axis, spectra = _fermentation(settings.bins)
        axis_name, quantity = "wavenumber (cm$^{-1}$)", "absorbance"
        source = (
            "ATR-MIR spectra of a lignocellulose fermentation (Cabaneros Lopez et al.), shipped "
            "with chemotools under the MIT licence"
        )
    else:
        axis, spectra = _transits(settings.bins, settings.seed)
        axis_name, quantity = "wavelength (µm)", "transit depth"
        source = "SYNTHETIC transit spectra, made up by spectramind_fused: no real data"
    random = np.random.default_rng(settings.seed)
    blocks = np.arange(len(spectra)) // _BLOCK
    count = blocks[-1] + 1
    held_out = random.permutation(count)[: max(1, round(settings.validation * count))]
    validation = np.isin(blocks, held_out)

    spectra = (spectra - spectra[~validation].mean()) / spectra[~validation].std()
    edges = channel_edges(settings.bins, settings.channels)
    channels = np.add.reduceat(spectra, edges[:-1], axis=1) / np.diff(edges)
    channels += settings.noise * random.standard_normal(channels.shape)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    return Spectra(
        train_inputs=tensor(channels[~validation]),
        train_targets=tensor(spectra[~validation]),
        validation_inputs=tensor(channels[validation]),
        validation_targets=tensor(spectra[validation]),
        axis=axis,
        axis_name=axis_name,
        quantity=quantity,
        source=f"{source}; the inputs' noise (sigma {settings.noise:g}) is ours",
    )


def channel_edges(bins: int, channels: int) -> np.ndarray:
    """First bin of each coarse channel, and the end: int [channels + 1]."""
    return np.linspace(0, bins, channels + 1).round().astype(int)


def _fermentation(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers [bins] and absorbances [1626, bins]."""
    try:
        table = files("chemotools") / "datasets" / "data" / "fermentation_spectra.csv"
    except ModuleNotFoundError as error:
        raise ConfigError(
            ["data=spectra needs the package chemotools: install spectramind-fused[train], "
             "or take data=synthetic"]
        ) from error  # fmt: skip
    with table.open() as lines:
        wavenumbers = np.array(lines.readline().split(","), dtype=float)
        spectra = np.loadtxt(lines, delimiter=",")[:-3]  # the last three rows are constant
    inside = (wavenumbers >= _WINDOW[0]) & (wavenumbers <= _WINDOW[1])
    axis = np.linspace(wavenumbers[inside][0], wavenumbers[inside][-1], bins)
    return axis, np.stack([np.interp(axis, wavenumbers[inside], row[inside]) for row in spectra])


def _transits(bins: int, seed: int, count: int = 1600) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths [bins] and transit depths [count, bins]: a slope and molecular bands."""
    random = np.random.default_rng(seed + 1)
    axis = np.linspace(1.95, 3.9, bins)
    centres, widths = np.array([2.0, 2.7, 3.3, 3.6]), np.array([0.06, 0.12, 0.08, 0.2])
    bands = np.exp(-0.5 * ((axis - centres[:, None]) / widths[:, None]) ** 2)
    strengths = random.gamma(2.0, 1e-4, (count, len(centres)))
    slope = random.normal(0, 1e-4, (count, 1)) * (axis - axis.mean())
    return axis, random.uniform(5e-3, 7e-3, (count, 1)) + slope + strengths @ bands
