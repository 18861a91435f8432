"""As tests/compiled/test_storages.py, on CPUs."""

import pytest

from tests.compiled.test_storages import PICKED, check, name_of

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.mark.parametrize("chosen", PICKED, ids=name_of)
def test_every_pair_of_choices_is_bit_for_bit_on_a_cpu(chosen):
    check("cpu", chosen)
