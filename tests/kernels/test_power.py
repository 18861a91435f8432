"""Powers of real exponents: within a unit in the last place of a reference of 200 bits."""

import math

import mpmath
import numpy as np
import pytest

from tests.powers import real_power

COUNT = 3000
ANY = np.random.default_rng(0)
RANGES = {
    "NAdam's": (np.full(COUNT, 0.96), ANY.integers(1, 2**22, COUNT) * 0.004),
    "NAdam's, small": (np.full(COUNT, 0.96), 10 ** ANY.uniform(-6, 1, COUNT)),
    "ASGD's": (1 + 10 ** ANY.uniform(-16, 6, COUNT), ANY.choice([0.75, 0.5, 1.0, 0.1, 2.0], COUNT)),
    "Adafactor's": (ANY.integers(1, 2**24, COUNT).astype(float), np.full(COUNT, -0.8)),
    "any": (10 ** ANY.uniform(-5, 5, COUNT), ANY.uniform(-60, 60, COUNT)),
    "denormal results": (1 + ANY.random(COUNT), -ANY.uniform(1000, 1080, COUNT)),
}


@pytest.mark.parametrize("of", RANGES)
def test_it_is_within_a_unit_in_the_last_place(of):
    with mpmath.workprec(200):
        for base, exponent in zip(*RANGES[of], strict=True):
            exact = mpmath.power(mpmath.mpf(float(base)), mpmath.mpf(float(exponent)))
            error = abs(mpmath.mpf(real_power(base, exponent)) - exact)
            assert error <= math.ulp(float(exact)), (base, exponent)


@pytest.mark.parametrize(
    ("base", "exponent", "result"),
    [
        (0.0, 2.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, math.inf),
        (math.inf, 1.0, math.inf), (math.inf, -1.0, 0.0), (math.inf, 0.0, 1.0),
        (1.0, math.inf, 1.0), (2.0, math.inf, math.inf), (2.0, -math.inf, 0.0),
        (0.5, math.inf, 0.0), (2.0, 2000.0, math.inf), (2.0, -2000.0, 0.0), (2.0, 10.0, 1024.0),
        (math.nan, 1.0, math.nan), (2.0, math.nan, math.nan), (-1.0, 2.0, math.nan),
    ],
)  # fmt: skip
def test_its_edges(base, exponent, result):
    found = real_power(base, exponent)
    assert found == result or (math.isnan(found) and math.isnan(result))
