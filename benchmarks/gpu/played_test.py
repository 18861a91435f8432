"""A test that fails, for `PLAYED_FAULT=correctness`; pytest collects it only where it is named."""


def test_planted():
    """Fails."""
    raise AssertionError("planted")
