"""How a value gets into fewer bits, against exact arithmetic: random bits, each storage, its edges.

The kernels are held to these functions bit for bit (tests/compiled/test_storages.py).
"""

from fractions import Fraction

import pytest
import torch

from spectramind_fused.multi_tensor.storages import (
    GROUP,
    MASTER,
    PIECE,
    SIGNED8,
    SPLIT,
    STOCHASTIC,
    UNSIGNED8,
)
from spectramind_fused.stepping.rounding import Draw, Place, narrow, philox, widen

SIXTEEN = [torch.bfloat16, torch.float16]
EDGES = [0.0, 1e-45, 1e-40, 6e-8, 3e-8, 6.1e-5, 1.0, 1.00390625, 65504.0, 65519.9, 3.39e38, 3.4e38]


def bits(count, step=1, seed=0, parameter=0, stream=0):
    place = Place(parameter, 0, count, 0)
    return Draw(seed, step, place).bits(stream, count, torch.device("cpu"))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    got = philox(key, torch.tensor(counter[:1]), *counter[1:])
    assert [f"{int(word):08x}" for word in got] == words.split()


def test_an_element_has_its_bits_wherever_it_lies():
    whole = Draw(7, 3, Place(2, 0, 600, 0)).bits(5, 600, torch.device("cpu"))
    part = Draw(7, 3, Place(2, 123, 400, 0)).bits(5, 400, torch.device("cpu"))
    assert torch.equal(part, whole[123:523])
    columns = Draw(7, 3, Place(2, 5, 10, 30)).bits(5, 200, torch.device("cpu"))  # of 20 rows of 30
    assert torch.equal(columns.view(20, 10), whole.view(20, 30)[:, 5:15])


@pytest.mark.parametrize("other", ["step", "parameter", "stream", "seed"])
def test_bits_are_uniform_and_independent(other):
    """Chi-square of the bytes, and of pairs of neighbours and of draws that differ in one thing."""
    count = 2**18
    first, second = bits(count), bits(count, **{other: 9})
    for values, cells in [
        (first >> 8, 256),
        (first & 255, 256),
        ((first[:-1] >> 12) * 16 + (first[1:] >> 12), 256),
        ((first[:-8] >> 12) * 16 + (first[8:] >> 12), 256),
        ((first >> 12) * 16 + (second >> 12), 256),
    ]:
        seen = torch.bincount(values, minlength=cells).double()
        expected = len(values) / cells
        chi_square = float(((seen - expected).square() / expected).sum())
        assert abs(chi_square - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_stochastic_rounding_goes_to_a_neighbour_in_proportion(dtype):
    """For each value the random bits that take it up are as many as its place between both."""
    random = torch.arange(2**16)
    spacing = 2.0**-24 if dtype == torch.float16 else 2.0**-133
    for value in [*EDGES, 1.0 + 2**-11 + 2**-20, 0.1, 1e-5, 2.5e-7, 1e-39, 1234.567]:
        for signed in (value, -value):
            exact = torch.tensor(signed, dtype=torch.float32)
            values = exact.expand(2**16).contiguous()
            (got,) = narrow(STOCHASTIC[dtype], values, random)
            near = set(got.tolist())
            assert len(near) <= 2, (signed, near)
            if len(near) == 1 and float(got[0]) == float(exact):
                continue
            below, above = sorted(abs(v) for v in near) if len(near) == 2 else (None, None)
            if above is None or above == float("inf"):
                assert exact.abs() > torch.finfo(dtype).max * 0.99 or value < spacing * 2**-15
                continue
            part = (Fraction(abs(float(exact))) - Fraction(below)) / (
                Fraction(above) - Fraction(below)
            )
            ups = int((got.abs().float() == above).sum())
            assert abs(ups / 2**16 - float(part)) <= 2.0**-13, (signed, ups, float(part))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_stochastic_rounding_is_unbiased(dtype):
    """The mean over many draws is the value, within five standard errors, at every exponent."""
    count = 2**17
    for exponent in range(-20, 15, 3):
        value = 1.7182818 * 2.0**exponent
        values = torch.full((count,), value, dtype=torch.float32)
        (got,) = narrow(STOCHASTIC[dtype], values, bits(count, step=exponent + 50))
        error = got.double() - values.double()
        assert abs(float(error.mean())) < 5 * float(error.std()) / count**0.5


@pytest.mark.parametrize("storage", [*STOCHASTIC.values(), SPLIT, *MASTER.values()])
def test_what_is_not_finite_stays_so(storage):
    """The canonical NaN, and one of all ones, which must not become -0."""
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1.0])
    raw = torch.cat([values.view(torch.int32), torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32)])
    values = raw.view(torch.float32)
    for random in (0, 1, 0x8000, 0xFFFF):
        rows = narrow(storage, values, torch.full((8,), random))
        for got in (rows[0].float(), widen(storage, rows[0], rows[1:])):
            assert torch.equal(got[:2], values[:2])
            assert torch.equal(got.isnan(), values.isnan())
            assert torch.equal(got[3:6], values[3:6])
            assert got[4].signbit()


def test_a_split_value_comes_back_exactly():
    torch.manual_seed(0)
    raw = torch.randint(-(2**31), 2**31, (10**6,)).to(torch.int32)
    values = raw.view(torch.float32)
    own, *beside = narrow(SPLIT, values, None)
    back = widen(SPLIT, own, beside)
    number = ~values.isnan()
    assert torch.equal(back.view(torch.int32)[number], raw[number])
    assert back[~number].isnan().all()
    finite = values.isfinite() & own.isfinite()  # and what the model sees is the nearest
    off = (own.double() - values.double()).abs()[finite]
    assert (off <= (values.to(torch.bfloat16).double() - values.double()).abs()[finite]).all()


def test_a_remainder_is_not_joined_to_another_value():
    values = torch.randn(3 * PIECE + 5)
    own, *beside = narrow(SPLIT, values, None)
    own = own.clone()
    own[PIECE + 7] += 1  # someone else wrote to the second piece
    back = widen(SPLIT, own, beside)
    second = slice(PIECE, 2 * PIECE)
    assert torch.equal(back[second], own[second].float())
    back[second] = values[second]
    assert torch.equal(back, values)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_master_does_not_stand_for_another_value(dtype):
    values = torch.randn(100)
    own, master = narrow(MASTER[dtype], values, None)
    own[3], own[4] = 7.0, float("nan")
    back = widen(MASTER[dtype], own, [master])
    assert back[3] == 7.0
    assert back[4].isnan()
    others = [i for i in range(100) if i not in (3, 4)]
    assert torch.equal(back[others], values[others])


def spread_values(signed):
    torch.manual_seed(0)
    values = torch.randn(40 * GROUP + 7) * 10 ** torch.linspace(-30, 30, 40 * GROUP + 7)
    return values if signed else values.abs()


@pytest.mark.parametrize("storage", [SIGNED8, UNSIGNED8])
@pytest.mark.parametrize("random", [0, 0x8000, 0xFFFF])
def test_eight_bits_are_within_a_step(storage, random):
    values = spread_values(storage == SIGNED8)
    codes, scales = narrow(storage, values, torch.full((len(values),), random))
    back = widen(storage, codes, [scales])
    scale = scales.float().repeat_interleave(GROUP)[: len(values)]
    if storage == SIGNED8:  # a step of y = 2x / (1 + |x|) is at most 2 * 1 / 127 of x's range
        assert ((back - values).abs() <= scale * 2.1 / 127).all()
        small = values.abs() < scale / 50  # and half of that near 0
        assert ((back - values).abs() <= scale / 120)[small].all()
    else:
        assert ((back.sqrt() - values.sqrt()).abs() <= scale / 250).all()
        assert (back[values > 0] > 0).all()  # or a step would be divided by eps alone
    largest = values.abs() if storage == SIGNED8 else values.sqrt()
    padded = torch.nn.functional.pad(largest, (0, -len(values) % GROUP)).view(-1, GROUP).amax(1)
    assert (scales.float() >= padded).all()
    assert (scales.float() <= padded * (1 + 2**-7)).all()


@pytest.mark.parametrize("storage", [SIGNED8, UNSIGNED8])
def test_eight_bits_of_what_stays_the_same_do_not_drift(storage):
    """Rounded again and again, at random, the mean stays: nothing is lost, nothing piles up."""
    values = torch.rand(256 * GROUP) + 0.01
    values[::GROUP] = 1.5
    held = values
    for step in range(50):
        codes, scales = narrow(storage, held, bits(len(values), step=step))
        held = widen(storage, codes, [scales])
    shown = (lambda v: v) if storage == SIGNED8 else torch.sqrt
    assert abs(float(shown(held).mean() / shown(values).mean()) - 1) < 0.003


@pytest.mark.parametrize("storage", [SIGNED8, UNSIGNED8])
def test_eight_bits_follow_what_decays_slowly(storage):
    """0.1 % less at every step is below half a step of the codes: to nearest they never move."""
    values = torch.rand(64 * GROUP) + 0.05
    held = values
    for step in range(700):
        codes, scales = narrow(storage, held * 0.999, bits(len(values), step=step))
        held = widen(storage, codes, [scales])
    assert abs(float(held.mean() / values.mean()) - 0.999**700) < 0.03


@pytest.mark.parametrize(
    ("storage", "becomes"), [(SIGNED8, float("nan")), (UNSIGNED8, float("inf"))]
)
def test_one_value_that_is_not_finite_spoils_no_other(storage, becomes):
    values = torch.rand(2 * GROUP) + 0.1
    usual = values.clone()
    usual[[3, 4]] = 0.1
    values[3], values[4] = float("inf"), float("nan")
    random = bits(2 * GROUP)
    codes, scales = narrow(storage, values, random)
    expected = widen(storage, *_rows(narrow(storage, usual, random)))
    back = widen(storage, codes, [scales])
    wanted = torch.tensor([becomes, becomes])
    torch.testing.assert_close(back[3:5], wanted, rtol=0, atol=0, equal_nan=True)
    others = [i for i in range(2 * GROUP) if i not in (3, 4)]
    assert torch.equal(back[others], expected[others])


def _rows(rows):
    return rows[0], rows[1:]


@pytest.mark.parametrize("storage", [SIGNED8, UNSIGNED8])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e38])
def test_eight_bits_at_the_edges(storage, value):
    values = torch.full((GROUP,), value)
    codes, scales = narrow(storage, values, torch.full((GROUP,), 0x8000))
    back = widen(storage, codes, [scales])
    assert back.isfinite().all()
    torch.testing.assert_close(back, values, rtol=0.02, atol=1e-39)
