"""What stands in a picture, and that nothing in it lies over something else."""

import math
from itertools import combinations

import pytest
from matplotlib.text import Text

from spectramind_fused.training import past_runs, pictures
from tests.past_runs import leave


def falling(end, epochs=20):
    return [end + 3 * math.exp(-epoch / 4) for epoch in range(epochs)]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_nothing_overlaps(figure):
    """Titles, labels, ticks and legend are inside the figure and apart from each other."""
    figure.draw_without_rendering()
    boxes = {"legend": figure.legends[0].get_window_extent()}
    for i, axes in enumerate(figure.axes):
        texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        texts += [text for text in axes.get_children() if isinstance(text, Text)]
        for along, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())  # ticks beyond are not drawn
            ticks = axis.get_ticklabels()
            texts += [text for text in ticks if low <= text.get_position()[along] <= high]
        for text in texts:
            if text.get_text() and text.get_visible() and text.get_window_extent().width:
                boxes[f"{text.get_text()!r} of axes {i}"] = text.get_window_extent()
    for name, box in boxes.items():
        assert figure.bbox.containsx(box.x0), f"{name} is cut"
        assert figure.bbox.containsx(box.x1), f"{name} is cut"
        assert figure.bbox.containsy(box.y0), f"{name} is cut"
        assert figure.bbox.containsy(box.y1), f"{name} is cut"
    for (name, box), (other, second) in combinations(boxes.items(), 2):
        assert not box.padded(-1).overlaps(second.padded(-1)), f"{name} lies over {other}"


@pytest.fixture
def grid(tmp_path):
    """Twelve runs of two values; one diverged, one did not end, one ended far off."""
    runs = []
    for i, (lr, decay) in enumerate((a, b) for a in (10, 9, 1e-3, 1) for b in (0.5, 0.01, 0.1)):
        words = [f"optimizer.lr={lr:g}", f"optimizer.weight_decay={decay}"]
        scores = {9: [1.0, math.nan, math.nan], 10: falling(0)[:7], 11: [1e6] * 20}
        made = leave(tmp_path / str(i), words, scores.get(i, falling(-2 + i / 20)), ended=i != 10)
        runs.append(made)
    return sorted(runs, key=past_runs.rank)


def test_a_sweep_over_two_values_has_a_map(grid):
    figure = pictures.leaderboard(grid)
    assert_nothing_overlaps(figure)
    curves, shares, rms, heat, _ = figure.axes
    low, high = curves.get_ylim()
    assert low < -2
    assert 0 < high < 2, "a run that ended far off squeezes the others"
    assert (heat.get_ylabel(), heat.get_xlabel()) == ("lr", "weight_decay")
    assert [t.get_text() for t in heat.get_yticklabels()] == ["0.001", "1", "9", "10"]
    assert [t.get_text() for t in heat.get_xticklabels()] == ["0.01", "0.1", "0.5"]
    cells = {t.get_position()[::-1]: t.get_text() for t in heat.texts}
    assert cells[3, 2] == f"{grid[0].score:.3f}"
    assert cells[1, 2] == "diverged"
    assert cells[1, 0] == "did not end"
    assert cells[1, 1] == "1.0e+06"
    assert legend(figure)[0] == f"1: lr 10, weight_decay 0.5 ({grid[0].score:.3f})"
    assert legend(figure)[9:] == [
        "3 others", "above the axis: rank 10", "diverged: rank 11", "did not end: rank 12",
        "no figure", "calibrated",
    ]  # fmt: skip
    assert shares.get_title(loc="left").startswith("% within 1 sigma")
    assert rms.get_xlabel() == "rank"


def test_of_many_runs_the_best_are_named_and_the_others_grey(tmp_path):
    runs = [
        leave(tmp_path / str(i), [f"optimizer.lr={i}"], falling(-2 + i / 50) if i else [math.nan])
        for i in range(48)
    ]
    figure = pictures.leaderboard(sorted(runs, key=past_runs.rank))
    assert_nothing_overlaps(figure)
    assert [line.split(":")[0] for line in legend(figure)[:9]] == list("123456789")
    assert legend(figure)[9:] == ["39 others", "diverged: rank 48", "no figure", "calibrated"]
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 20]
    assert len(drawn) == 47
    assert sum(line.get_color() == "0.75" for line in drawn) == 38


@pytest.mark.parametrize("scores", [[-1.0], []])
def test_one_run_has_a_picture(scores, tmp_path):
    run = leave(tmp_path / "0", ["optimizer=adamw"], scores, ended=bool(scores))
    figure = pictures.leaderboard([run])
    assert_nothing_overlaps(figure)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ([] if scores == [-1.0] else ["no run has a finite val/gll"])
    assert pictures.png(figure).startswith(b"\x89PNG")


def test_values_drawn_at_random_have_no_map(tmp_path):
    runs = [
        leave(tmp_path / str(i), [f"optimizer.lr={i / 7}", f"optimizer.eps={i / 9}"], falling(-2))
        for i in range(4)
    ]
    figure = pictures.leaderboard(runs)
    assert len(figure.axes) == 3
    assert legend(figure)[1].startswith("2: lr 0.143, eps 0.111 (")


@pytest.mark.parametrize("other", [falling(-2.2), [1e5, 1e4, math.nan], [1e6, 1e5]])
def test_two_runs_are_compared(other, tmp_path):
    """However far off the other is, the first one's curve is seen."""
    first = leave(tmp_path / "a", ["optimizer=adamw"], falling(-2))
    runs = [first, leave(tmp_path / "b", ["optimizer=$lion"], other)]
    figure = pictures.comparison(runs)
    assert_nothing_overlaps(figure)
    curves, differences, *_ = figure.axes
    assert -2.6 < curves.get_ylim()[0] < -1.9
    assert curves.get_ylim()[1] < 2
    assert legend(figure)[0].startswith("1: adamw (-1.")
    assert legend(figure)[1].startswith(r"2: \$lion (")
    points = [line.get_ydata()[0] for line in differences.lines if line.get_marker() == "o"]
    assert points == [run.score - first.score for run in runs if math.isfinite(run.score)]
