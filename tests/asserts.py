"""Equal bit for bit, or within so many units of the last place."""

import torch

# How far off torch's own steps may be after 20 or so, in units of the last place. It multiplies by
# rounded betas and by 1 - lr * weight_decay, a bias that grows: drop_in/test_accuracy.py.
TORCHS_ULPS = 16


class Magnitudes:
    """The largest absolute value each element has had: what rounding errors are relative to."""

    def __init__(self):
        self.largest = None

    def see(self, tensors):
        values = [t.detach().cpu().double().abs() for t in tensors]
        old = self.largest or values
        self.largest = [torch.maximum(a, b) for a, b in zip(old, values, strict=True)]


def assert_within_ulps(actual, expected, magnitudes, ulps):
    """Every element within `ulps` units in the last place of the largest value it has had."""
    for a, e, largest in zip(actual, expected, magnitudes, strict=True):
        unit = torch.finfo(a.dtype).eps * largest.cpu().clamp_min(torch.finfo(a.dtype).tiny)
        off = (a.detach().cpu().double() - e.detach().cpu().double()).abs()
        error = (off / unit).max() if e.numel() else 0
        assert error <= ulps, f"{float(error):.1f} ulp off in a tensor of shape {tuple(e.shape)}"


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        a, e = a.detach().cpu(), e.detach().cpu()  # the oracle's lie there, wherever ours do
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


def close(actual, expected):
    """As far off as torch's rounding explains, relative to the value, or to 1 if that is larger."""
    sizes = [e.detach().cpu().double().abs().clamp_min(1.0) for e in expected]
    assert_within_ulps(actual, expected, sizes, TORCHS_ULPS)
