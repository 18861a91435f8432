"""The comparison of optimizers: what the page shows is what was measured."""

import json

import pytest

from benchmarks import optimizers


def test_the_page_shows_the_figures():
    figures = json.loads(optimizers.FIGURES.read_text())
    assert optimizers.table(figures) in optimizers.DOC.read_text()
    for of_tasks in figures["optimizers"].values():
        for found in of_tasks.values():
            rates = {float(lr): score for lr, score in found["tried"].items()}
            assert min(rates) < found["lr"] < max(rates)
            assert rates[found["lr"]] == min(rates.values()) == found["scores"][0]


@pytest.mark.parametrize("best", [1.0, 8.0, 64.0])
def test_the_grid_goes_on_until_its_best_is_inside(best):
    tried, found = optimizers.best_rate((4.0, 8.0, 16.0), lambda lr: abs(lr - best))
    assert found == best
    assert min(tried) < found < max(tried)
