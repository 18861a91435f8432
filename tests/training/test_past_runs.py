"""What runs left behind, read back: whole, cut short, written twice, damaged."""

import json
import math

import pytest

from spectramind_fused.training import labels, past_runs
from tests.past_runs import leave


def test_runs_stand_in_the_order_of_their_numbers(tmp_path):
    for i in (10, 9, 1):
        leave(tmp_path / str(i))
    assert [run.folder.name for run in past_runs.inside(tmp_path)] == ["1", "9", "10"]
    assert [run.folder for run in past_runs.inside(tmp_path / "9")] == [tmp_path / "9"]


@pytest.mark.parametrize(
    ("lines", "history"),
    [
        ("1,0,5\n2,0,4\n1,0,3\n", {1: 3.0}),  # begun anew in the same folder
        ("1,0,5\n2,0,4\n3,0,3\n3,0,2\n", {1: 5.0, 2: 4.0, 3: 2.0}),  # resumed after the second
        ("8,0,5\n9,0,nan\n10,", {8: 5.0, 9: math.nan}),  # resumed elsewhere; being written
        ("", {}),
    ],
)
def test_history_is_of_the_last_run_in_a_folder(lines, history, tmp_path):
    run = leave(tmp_path / "run")
    (run.folder / "history.csv").write_text(f"epoch,train/gll,val/gll\n{lines}")
    assert str(run.history) == str(history)


@pytest.mark.parametrize(
    ("scores", "ended", "result", "fate"),
    [
        ([1, -1, -2], True, {}, ""),
        ([1, math.nan, math.nan], True, {}, "diverged in epoch 2"),
        ([1, -1], False, {}, "did not end: 2 of 3 epochs"),
        ([], False, {}, "did not end: 0 of 3 epochs"),
        ([1, -1], True, {"pruned after epoch": 2}, "pruned after epoch 2"),
    ],
)
def test_what_became_of_a_run(scores, ended, result, fate, tmp_path):
    run = leave(tmp_path / "run", scores=scores, ended=ended)
    if result:
        path = run.folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | result))
    assert run.fate == fate


def test_the_best_comes_first_and_what_has_no_score_last(tmp_path):
    runs = [
        leave(tmp_path / "a", scores=[math.nan]),
        leave(tmp_path / "b", scores=[-1]),
        leave(tmp_path / "c", scores=[-2]),
        leave(tmp_path / "d", scores=[-9], ended=False),
    ]
    order = [run.folder.name for run in sorted(runs, key=past_runs.rank)]
    assert order == ["c", "b", "a", "d"]


def test_what_was_not_typed_is_looked_up(tmp_path):
    """And 3e-4 is no other value than 0.0003."""
    words = (["optimizer=sgd", "++optimizer.lr=0.1"], ["optimizer.lr=3e-4"], [])
    runs = [leave(tmp_path / str(i), typed) for i, typed in enumerate(words)]
    choices = {"hydra": {"runtime": {"choices": {"optimizer": "adamw"}, "output_dir": "${now:%Y}"}}}
    for run in runs[1:]:
        (run.folder / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    assert labels.names(runs) == ["sgd, lr 0.1", "adamw, lr 3e-4", "adamw, lr 0.0003"]
    assert past_runs.varied(runs[1:]) == []


def test_runs_that_nothing_tells_apart_go_by_their_folders(tmp_path):
    runs = [leave(tmp_path / name, [f"optimizer.lr={lr}"]) for name, lr in ("a1", "b1", "c2")]
    assert labels.names(runs) == ["lr 1 in a", "lr 1 in b", "lr 2"]
    assert labels.names(runs[:1]) == ["a"]


def test_keys_with_one_last_word_are_told_apart(tmp_path):
    keys = ["training.seed", "data.seed", "optimizer.lr"]
    assert list(labels.short(keys).values()) == ["training.seed", "data.seed", "lr"]


@pytest.mark.parametrize(
    ("asked", "name", "text"),
    [
        ("result", "result.json", '{"val/gll": '),
        ("result", "result.json", "[]"),
        ("record", "optimizer.json", "\x00"),
        ("config", ".hydra/config.yaml", "a: [1"),
        ("overrides", ".hydra/overrides.yaml", "{"),
    ],
)
def test_a_damaged_file_is_named(asked, name, text, tmp_path):
    run = leave(tmp_path / "run")
    (run.folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        getattr(run, asked)
