"""The task: real spectra, split by blocks, standardised on the training part."""

import math

import numpy as np
import pytest
import torch

from spectramind_fused.config.check import ConfigError
from spectramind_fused.training import data
from spectramind_fused.training.data import Spectra, channel_edges, load_spectra
from spectramind_fused.training.model import SpectrumMLP, baselines, gll
from spectramind_fused.training.settings import DataSettings


def settings(**values):
    base = {"name": "spectra", "channels": 32, "bins": 283, "noise": 0.05, "validation": 0.2}
    return DataSettings(**{**base, "seed": 0, **values})


@pytest.mark.parametrize(("name", "count"), [("spectra", 1626), ("synthetic", 1600)])
def test_shapes_and_standardisation(name, count):
    spectra = load_spectra(settings(name=name))
    train, validation = spectra.train_targets, spectra.validation_targets
    assert len(train) + len(validation) == count
    assert train.shape[1] == validation.shape[1] == len(spectra.axis) == 283
    assert spectra.train_inputs.shape == (len(train), 32)
    assert spectra.validation_inputs.shape == (len(validation), 32)
    assert train.mean().item() == pytest.approx(0, abs=1e-4)
    assert train.std().item() == pytest.approx(1, abs=1e-3)
    assert "noise (sigma 0.05) is ours" in spectra.source
    assert ("SYNTHETIC" in spectra.source) is (name == "synthetic")


def test_the_window_has_no_jump_and_the_axis_rises():
    spectra = load_spectra(settings())
    assert spectra.axis[0] >= 950
    assert spectra.axis[-1] <= 1500
    assert (np.diff(spectra.axis) > 0).all()


def test_blocks_of_20_neighbours_stay_together():
    spectra = load_spectra(settings(noise=0.0))
    whole = data._fermentation(283)[1]
    first_bins = torch.from_numpy(whole[:, 0])
    held = spectra.validation_targets[:, 0].double()
    # undo the standardisation by matching ranks: both parts keep the order of the file
    scale = (held - held[0]) / (held[1] - held[0])
    starts = [
        start
        for start in range(0, 1620, 20)
        if torch.allclose(
            (first_bins[start : start + 20] - first_bins[start])
            / (first_bins[start + 1] - first_bins[start]),
            scale[:20],
            atol=1e-2,
        )
    ]
    assert len(starts) == 1
    assert len(held) % 20 in (0, 6)  # 1626 spectra: one block of 6


def test_channels_are_means_of_their_bins_and_noise_has_the_stated_sigma():
    clean, noisy = load_spectra(settings(noise=0.0)), load_spectra(settings(noise=0.1))
    edges = channel_edges(283, 32)
    assert edges[0] == 0
    assert edges[-1] == 283
    expected = clean.train_targets[:, edges[3] : edges[4]].mean(1)
    torch.testing.assert_close(clean.train_inputs[:, 3], expected)
    noise = noisy.train_inputs - clean.train_inputs
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy.train_targets, clean.train_targets)


def test_the_seed_decides_all():
    a, b, c = (load_spectra(settings(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a.train_inputs, b.train_inputs)
    assert a.train_inputs.shape != c.train_inputs.shape or not torch.equal(
        a.train_inputs, c.train_inputs
    )


def test_without_chemotools_it_says_what_to_do(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(data, "files", absent)
    with pytest.raises(ConfigError, match=r"needs the package chemotools.*data=synthetic"):
        load_spectra(settings())


def test_gll_is_the_formula_of_the_contract():
    mean, sigma, target = torch.randn(4, 5), torch.rand(4, 5) + 0.1, torch.randn(4, 5)
    expected = 0.5 * ((2 * math.pi * sigma**2).log() + (target - mean) ** 2 / sigma**2)
    torch.testing.assert_close(gll(mean, sigma, target), expected.mean())


def test_the_model_predicts_mean_and_sigma_of_every_bin():
    model = SpectrumMLP(32, 283, (256, 256))
    mean, sigma = model(torch.randn(7, 32) * 100)
    assert mean.shape == sigma.shape == (7, 283)
    assert (sigma >= 1e-3).all()
    assert model.head.out_features == 566


def test_baselines_are_what_their_names_say():
    torch.manual_seed(1)
    edges = torch.tensor([0, 2, 4, 6])
    train, validation = torch.randn(50, 6), torch.randn(20, 6)
    channels = [part.reshape(-1, 3, 2).mean(2) for part in (train, validation)]
    words = ("bin", "height", "made up")
    spectra = Spectra(channels[0], train, channels[1], validation, np.arange(6), *words)
    found = baselines(spectra, edges)
    mean, std = train.mean(0).numpy(), train.std(0).numpy()

    def score(mean, sigma, target):
        return (0.5 * (np.log(2 * np.pi * sigma**2) + (target - mean) ** 2 / sigma**2)).mean()

    assert found["mean and std"] == pytest.approx(score(mean, std, validation.numpy()), rel=1e-5)
    wide = [
        np.stack([np.interp(np.arange(6), [0.5, 2.5, 4.5], row) for row in part.numpy()])
        for part in channels
    ]
    residual = train.numpy() - wide[0]
    guess = wide[1] + residual.mean(0)
    expected = score(guess, residual.std(0, ddof=1), validation.numpy())
    assert found["interpolation"] == pytest.approx(expected, rel=1e-5)
