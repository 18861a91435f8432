"""A sweep's picture, and `spectramind compare`: what it says, writes and refuses."""

import csv
import json
import math

import pytest
from rich.console import Console

from spectramind_fused.files import write_together
from spectramind_fused.training import compare, leaderboard, pictures
from tests.command_line import QUICK, refused, shell
from tests.past_runs import leave


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_a_picture_and_is_compared_with_its_first_run(tmp_path):
    words = "optimizer=adamw,sgd training.epochs=2"
    run = shell(f"spectramind train -m {QUICK} {words} optimizer.fused=true", tmp_path)
    assert run.returncode == 0, run.stderr
    (sweep,) = tmp_path.glob("outputs/multirun/*/*")
    assert f"in        {sweep}/leaderboard.csv, .md and .png\n" in run.stdout
    assert (sweep / "leaderboard.png").read_bytes().startswith(b"\x89PNG")

    run = shell(f"spectramind compare {sweep.relative_to(tmp_path)}", tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    (out,) = tmp_path.glob("outputs/compare/*/*")
    assert f"in        {out}: compare.csv, compare.md, compare.png\n" in run.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.csv",
        "compare.md",
        "compare.png",
    ]
    first, second = rows(out / "compare.csv")
    for row, number in ((first, "0"), (second, "1")):
        result = json.loads((sweep / number / "result.json").read_text())
        record = json.loads((sweep / number / "optimizer.json").read_text())
        assert result["timing"]["epochs timed"] == 1
        assert row["val/gll"] == f"{result['val/gll']:.4f}"
        assert row["ms per step"] == f"{result['timing']['ms per step']:.4f}"
        assert float(row["ms per step"]) > 0
        assert row["within 1 sigma"] == f"{result['calibration']['within 1 sigma']:.4f}"
        assert row["config hash"] == record["config_hash"][:12]
        assert (row["backend"], row["outcome"]) == ("cpu: cpu", "ended")
        assert row["config hash"] in run.stdout
    assert [first["what"], second["what"]] == ["adamw", "sgd"]
    assert [first["optimizer"], second["optimizer"]] == ["FusedAdamW", "FusedSGD"]
    difference = float(second["val/gll"]) - float(first["val/gll"])
    assert float(second["difference"]) == pytest.approx(difference, abs=2e-4)
    differs = second["differs from run 1 in"].split()
    assert {"optimizer.type=SGD", "optimizer.lr=0.01", "~optimizer.betas"} <= set(differs)
    assert not any("export_json" in word for word in differs)
    assert first["differs from run 1 in"] == ""
    table = (out / "compare.md").read_text()
    assert f"| 2 | sgd | {second['val/gll']} | {second['difference']} |" in table


def test_the_order_is_that_of_the_line_and_no_run_stands_twice(tmp_path):
    for i in range(3):
        leave(tmp_path / "sweep" / str(i), [f"optimizer.lr={i}"])
    alone = leave(tmp_path / "alone")
    runs = compare.gathered([tmp_path / "sweep" / "2", tmp_path / "sweep", alone.folder])
    assert [run.folder.name for run in runs] == ["2", "0", "1", "alone"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "nowhere is no folder: give the folder of a run or of a sweep."),
        ("a/result.json", "a/result.json is no folder"),
        ("empty", "empty is no run and holds none: a run's folder has .hydra in it"),
        ("a", "a is one run: give others, or a sweep, to compare with it."),
        ("a a", "a is one run"),
        ("cut a", "cut did not end: 1 of 3 epochs: the first run is what the others are compared"),
        ("a bad", "bad/result.json cannot be read"),
        ("a cut --out a/result.json", "--out: "),
        ("a cut --out taken", "--out: taken/compare.png is a folder."),
        ("", "the following arguments are required: RUN"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_writes_nothing(words, said, tmp_path):
    leave(tmp_path / "a")
    leave(tmp_path / "bad").folder.joinpath("result.json").write_text("{")
    leave(tmp_path / "cut", scores=[1.0], ended=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "compare.png").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    message = refused(f"spectramind compare {words}", tmp_path)
    assert said in message
    assert message.splitlines()[-1].startswith("spectramind compare: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_comparison_cannot_say_is_a_warning(tmp_path):
    leave(tmp_path / "a")
    leave(tmp_path / "b", config={"data": {"name": "synthetic", "noise": 0.2}}, device="H100")
    leave(tmp_path / "c", scores=[1.0], ended=False)
    leave(tmp_path / "d", scores=[math.nan])
    run = shell("spectramind compare a b c d --out out", tmp_path)
    assert run.returncode == 0
    assert run.stderr.splitlines() == [
        "warning: c did not end: 1 of 3 epochs: it has no result.",
        "warning: not of the same data as the first run (data.noise): b. val/gll and calibration "
        "cannot be compared.",
        "warning: these runs trained on cpu, H100: times cannot be compared.",
    ]
    outcomes = [row["outcome"] for row in rows(tmp_path / "out" / "compare.csv")]
    assert outcomes == ["ended", "ended", "did not end: 1 of 3 epochs", "diverged in epoch 1"]
    for said in ("diverged", "did not end", "data.noise=0.2"):
        assert said in run.stdout


def test_where_the_first_run_diverged_there_is_nothing_to_compare_with(tmp_path):
    runs = [leave(tmp_path / "a", scores=[math.nan]), leave(tmp_path / "b")]
    with pytest.warns(UserWarning, match="a diverged in epoch 1: nothing can be compared with it"):
        compare.warn(runs)
    assert [row[3] for row in compare.table(runs)] == ["difference", "", ""]


def test_a_run_of_before_times_were_recorded_has_none(tmp_path):
    runs = [leave(tmp_path / "a"), leave(tmp_path / "b")]
    path = runs[1].folder / "result.json"
    path.write_text(json.dumps({"val/gll": -1, "calibration": {}}))
    compare.warn(runs)
    head, _, row = compare.table(runs)
    assert row[head.index("ms per step")] == row[head.index("within 1 sigma")] == ""


def test_many_differing_keys_are_counted_on_the_console_and_written_out(tmp_path, capsys):
    config = {"training": {"epochs": 9}, "optimizer": {f"key{i}": i for i in range(5)}}
    runs = [leave(tmp_path / "a"), leave(tmp_path / "b", config=config)]
    words = ["training.epochs=9", *(f"optimizer.key{i}={i}" for i in range(5)), "~optimizer.lr"]
    assert compare.differing(*runs) == words
    compare.show(runs, Console(width=120))
    assert "b: 7 keys" in capsys.readouterr().out
    assert " ".join(words) in compare.table(runs)[2]


def test_without_matplotlib_there_are_tables_only(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "available", lambda: False)
    runs = [leave(tmp_path / "a"), leave(tmp_path / "b")]
    assert compare.write(runs, tmp_path / "out") == ["compare.csv", "compare.md"]
    leaderboard.write(tmp_path)
    assert not leaderboard.draw(tmp_path)


def test_where_one_file_cannot_be_written_none_is(tmp_path):
    (tmp_path / "a").write_text("before")
    (tmp_path / "in the way").write_text("")
    with pytest.raises(OSError, match="in the way"):
        write_together({tmp_path / "a": "after", tmp_path / "in the way" / "b": b"bytes"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "in the way"]
    assert (tmp_path / "a").read_text() == "before"
