"""A search: what it draws, how its study goes on, how runs are pruned, what it leaves behind."""

import csv
import json
import math
import re
import shlex
import signal
import subprocess
import time

import pytest
from hydra.core.config_store import ConfigStore
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from spectramind_fused.cli import runs
from spectramind_fused.cli.arguments import Arguments
from spectramind_fused.config.check import ConfigError
from spectramind_fused.training import search
from spectramind_fused.training import study as studies
from spectramind_fused.training.space import Space
from spectramind_fused.training.study import Asking, JobTrial
from tests.command_line import COLD, MODULE, QUICK, cold, refused, shell

BOX = ["x=tag(log,interval(1e-3,1.0))", "y=interval(0.0,1.0)"]
CELLS = ["x=choice(0.1,0.5)", "y=range(0.0,0.75,0.25)"]
SEARCH = f"spectramind train -m hydra/sweeper=search hydra.sweep.dir=found {QUICK}"


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("a.b=int(interval(1,5))", IntDistribution(1, 5)),
        ("a.b=interval(1,5)", FloatDistribution(1.0, 5.0)),
        ("a.b=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("a.b=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a.b=range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("a.b=range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("a.b=1e-3,1e-2", CategoricalDistribution(["0.001", "0.01"])),
        ("a.b=choice([0,0.9],[0,0.8])", CategoricalDistribution(["[0,0.9]", "[0,0.8]"])),
    ],
)  # fmt: skip
def test_hydras_syntax_is_what_optuna_draws_from(word, distribution):
    assert Space.of(None, [word]).always == {"a.b": distribution}


def draw(study, space):
    trial = study.ask()
    words = space.draw(trial)
    study.tell(trial, 0.0)
    return words


def test_what_stands_under_a_choice_is_drawn_beside_it_only(tmp_path):
    params = {
        "optimizer": "choice(sgd,lion)",
        "optimizer=sgd": {"optimizer.lr": "interval(1,2)", "optimizer.momentum": "interval(0,1)"},
        "optimizer=lion": {"optimizer.lr": "interval(3,4)"},
    }
    study = studies.opened(tmp_path)
    drawn = [draw(study, Space.of(params, ["data=spectra"])) for _ in range(20)]
    for fixed, choice, lr, *momentum in drawn:
        assert fixed == "data=spectra"
        of_sgd = choice == "optimizer=sgd"
        assert len(momentum) == of_sgd
        assert (float(lr.removeprefix("++optimizer.lr=")) < 3) == of_sgd
    assert len({words[1] for words in drawn}) == 2
    for typed in (["optimizer=sgd"], ["optimizer=sgd", "++optimizer.lr=7"]):
        words = draw(study, Space.of(params, typed))
        assert words[: len(typed)] == typed
        assert [word.partition("=")[0] for word in words[len(typed) :]] == [
            "++optimizer.lr", "++optimizer.momentum"][len(typed) - 1 :]  # fmt: skip
    with pytest.raises(ConfigError, match="optimizer=adam is none of the choices of optimizer"):
        Space.of({**params, "optimizer=adam": {"optimizer.lr": "interval(1,2)"}}, [])


def asked(folder, words, total, sampler="tpe", seed=0):
    options = {} if sampler in ("grid", "random") else {"n_startup_trials": 2}
    return Asking(folder, Space.of(None, words), total, (sampler, options, seed))


def goes_on(folder, asking, runs=100, dies=False):
    """Has runs end as a job's process would tell; a process that dies tells nothing of its last."""
    with asking.alive():
        asking.take_back_the_lost()
        for i in range(runs):
            batch = asking.ask(1)
            if not batch:
                break
            ((number, words),) = batch
            x, y = (float(word.partition("=")[2]) for word in words)
            if not (dies and i + 1 == runs):
                JobTrial(folder, number, "none", {}).ends((x - 0.2) ** 2 + y)


def results(folder):
    trials = studies.opened(folder).get_trials(states=(TrialState.COMPLETE,))
    return [(trial.params, trial.value) for trial in trials]


@pytest.mark.parametrize(
    ("sampler", "words", "total"),
    [("tpe", BOX, 6), ("gp", BOX, 5), ("random", BOX, 4), ("cmaes", BOX, 5), ("grid", CELLS, 6)],
)
def test_a_killed_search_goes_on_with_what_remains(sampler, words, total, tmp_path):
    """A grid with the same cells, the others but cmaes as if they had not been killed."""
    whole, killed, other = (tmp_path / name for name in ("whole", "killed", "other"))
    for folder in (whole, killed, other):
        folder.mkdir()
    goes_on(killed, asked(killed, words, total, sampler), runs=4, dies=True)
    assert len(results(killed)) == 3
    studies.opened.cache_clear()  # another process reads what lies on disk
    goes_on(killed, asked(killed, words, total, sampler))
    assert len(results(killed)) == total
    assert len({tuple(sorted(params.items())) for params, _ in results(killed)}) == total
    if sampler in ("grid", "cmaes"):  # Optuna's CMA-ES draws by the number of a trial, too
        return
    goes_on(whole, asked(whole, words, total, sampler))
    assert results(killed) == results(whole)
    goes_on(other, asked(other, words, total, sampler, seed=1))
    assert results(other) != results(whole)


def test_a_line_that_was_cut_off_is_dropped_before_the_next_one(tmp_path):
    goes_on(tmp_path, asked(tmp_path, BOX, 4), runs=2, dies=True)
    done = len(results(tmp_path))
    journal = tmp_path / studies.FILE
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:30])
    studies.opened.cache_clear()  # another process reads what lies on disk
    goes_on(tmp_path, asked(tmp_path, BOX, 4))
    assert journal.read_bytes().startswith(whole)
    assert len(results(tmp_path)) == 4 > done


def test_a_lock_that_is_not_taken_to_the_end_is_given_back(tmp_path):
    journal = tmp_path / studies.FILE
    lock = studies._Lock(str(journal))
    with pytest.raises(FileNotFoundError):
        lock.acquire()
    journal.touch()
    assert lock.acquire()  # or it waits
    lock.release()


def test_processes_share_a_study_and_leave_each_others_runs_alone(tmp_path):
    first, second, third = (asked(tmp_path, BOX, 5) for _ in range(3))
    with first.alive(), second.alive():
        mine = first.ask(2)
        second.take_back_the_lost()
        theirs = second.ask(9)
        assert len(theirs) == 3
        assert first.ask(1) == []
        values = [words for _, words in mine + theirs]
        assert len({tuple(words) for words in values}) == 5
        first.take_back([number for number, _ in mine[:1]])  # its run raised an error
        assert [words for _, words in second.ask(9)] == [mine[0][1]]
    third.take_back_the_lost()  # nobody lives
    assert len(third.ask(9)) == 5


def test_a_run_is_told_to_stop(tmp_path):
    asking = asked(tmp_path, BOX, 9)
    median = "median", {"n_startup_trials": 1, "n_warmup_steps": 1}
    good, bad, diverged, unpruned, given_up = [number for number, _ in asking.ask(5)]
    for epoch in (1, 2, 3):
        assert not JobTrial(tmp_path, good, *median).stops(epoch, -1.0)
    JobTrial(tmp_path, good, *median).ends(-2.0)
    assert not JobTrial(tmp_path, bad, *median).stops(1, 5.0)
    assert JobTrial(tmp_path, bad, *median).stops(2, 5.0)
    JobTrial(tmp_path, bad, *median).ends(5.0)  # changes nothing
    assert JobTrial(tmp_path, diverged, *median).stops(1, math.nan)
    assert not JobTrial(tmp_path, unpruned, "none", {}).stops(2, math.nan)
    JobTrial(tmp_path, unpruned, "none", {}).ends(math.nan)
    asking.take_back([given_up])
    assert not JobTrial(tmp_path, given_up, *median).stops(2, 5.0)
    JobTrial(tmp_path, given_up, *median).ends(5.0)
    trials = studies.opened(tmp_path).get_trials()
    assert [(trial.state.name, trial.value) for trial in trials[:5]] == [
        ("COMPLETE", -2.0), ("PRUNED", 5.0), ("PRUNED", None), ("COMPLETE", math.inf),
        ("FAIL", None),
    ]  # fmt: skip
    assert trials[5].state == TrialState.WAITING
    assert asking.remaining() == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimizer.lrr=interval(1,2)", "optimizer.lrr is no known key: did you mean 'lr'?"),
        ("optimizer.lr=interval(-1,1)", "optimizer.lr should be a number of at least 0, not -1."),
        ("optimizer.betas=[0.9,0.99],[0.9,1.5]", "below 1, not [0.9, 1.5]."),
        ("optimizer.lr=tag(log,interval(0.0,1))", "optimizer.lr: `low > 0` must hold"),
        ("optimizer=adamw,adamm", "Could not find 'optimizer/adamm'"),
        ("optimizer.lr=1", "nothing is to be drawn: add a range"),
        ("optimizer.lr=interval(0,1) hydra.sweeper.sampler=grid", "but no intervals and no cond"),
        ("optimizer.lr=1,2 hydra.sweeper.sampler=tpa", "not 'tpa': did you mean 'tpe'?"),
        ("optimizer.lr=1,2 hydra.sweeper.sampler=gp hydra.sweeper.pruner=median",
         "needs another sampler than gp, which learns noth"),
        ("optimizer.lr=1,2 hydra.sweeper.n_trials=0", "n_trials should be a whole number of at"),
        ("optimizer.lr=1,2 hydra.sweeper.trials=3", "hydra.sweeper.trials': there is no such key"),
        ("optimizer.lr=1,2 hydra.sweeper.tpe.n=3", "hydra.sweeper.tpe is not what Optuna takes: "),
        ("optimizer.lr=1,2 hydra.sweeper.pruner=median hydra.sweeper.median.n_startup_trials=-1",
         "hydra.sweeper.median is not what Optuna takes: "),
        ("optimizer.lr=interval(0,1) hydra/sweeper=basic", "which a grid cannot: add hydra/"),
    ],
)  # fmt: skip
def test_one_message_before_the_first_run(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        runs.train(Arguments.of(["-m", "hydra/sweeper=search", *words.split()]))
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "without", "said"),
    [
        ("hydra/sweeper=search", "optuna", "hydra/sweeper=search needs optuna"),
        ("hydra/sweeper=search hydra.sweeper.sampler=cmaes", "cmaes", "search needs cmaes"),
        ("hydra/launcher=joblib", "", "hydra/launcher=joblib needs hydra-joblib-launcher"),
        ("hydra/launcher=submitit_slurm", "", "submitit_slurm needs hydra-submitit-launcher"),
    ],
)
def test_without_the_extra_it_says_what_to_install(words, without, said, monkeypatch, capsys):
    monkeypatch.setattr(search, "find_spec", lambda name: None if name == without else name)
    hydra = ConfigStore.instance().repo["hydra"]
    monkeypatch.setitem(hydra, "launcher", {"basic.yaml": hydra["launcher"]["basic.yaml"]})
    with pytest.raises(SystemExit, match="2"):
        runs.check(Arguments.of(["-m", "optimizer.lr=1e-3,1e-2", *words.split()]))
    assert f"{said}: pip install 'spectramind-fused[sweep]'." in capsys.readouterr().err


def board(folder):
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_search_leaves_behind(tmp_path, monkeypatch, capsys):
    """Two runs of a grid, of which the second is pruned; then the command to run the best again."""
    line = (
        f"{SEARCH} training.epochs=3 optimizer.lr=1e-9,1e-2 hydra.sweeper.sampler=grid "
        "hydra.sweeper.pruner=median hydra.sweeper.median.n_startup_trials=1"
    )
    run = shell(line, tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    folder = tmp_path / "found"
    for name in ("study.journal", "history.png", "slice.png", "best.json", "leaderboard.md"):
        assert (folder / name).stat().st_size, name
    best = json.loads((folder / "best.json").read_text())
    assert best["overrides"] == ["optimizer.lr=0.01"]
    rows = board(folder)
    assert [row["run"] for row in rows] == ["0", "1"]
    assert [row["pruned"] for row in rows] == ["", "after epoch 1"]
    pruned = json.loads((folder / "1" / "result.json").read_text())
    assert pruned["pruned after epoch"] == 1
    assert "this run, pruned after epoch 1" in run.stdout
    assert "trials    1 ended, 1 pruned, 0 still run" in run.stdout
    assert f"best      val/gll {best['val/gll']:.4f} by run 0: optimizer.lr=0.01" in run.stdout

    (again,) = re.findall(r"^again     (.*)$", run.stdout, re.MULTILINE)
    assert shell(again, tmp_path).returncode == 0
    (result,) = tmp_path.glob("outputs/train/*/*/result.json")
    assert json.loads(result.read_text())["val/gll"] == best["val/gll"]

    monkeypatch.chdir(tmp_path)  # the same folder for something else
    other = [*shlex.split(line)[2:], "training.seed=1", "optimizer.lr=1,2"]
    with pytest.raises(SystemExit, match="2"):
        runs.train(Arguments.of(other))
    said = capsys.readouterr().err
    assert "found holds a search with another optimizer.lr, training.seed: give another" in said


@pytest.mark.parametrize(
    ("there", "content", "said"),
    [
        ("study.journal", "no study\n" * 2, "cannot be read as a study ("),
        ("0/.hydra/config.yaml", "", "found holds the runs of another sweep: give another"),
    ],
)
def test_a_folder_that_holds_something_else_is_left_alone(there, content, said, tmp_path):
    (tmp_path / "found" / there).parent.mkdir(parents=True)
    (tmp_path / "found" / there).write_text(content)
    assert said in refused(f"{SEARCH} optimizer.lr=1,2", tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "found" / there]


@pytest.mark.full
def test_a_search_that_is_killed_ends_like_one_that_is_not(tmp_path):
    words = [*shlex.split(SEARCH)[1:], "optimizer.lr=tag(log,interval(1e-4,1e-1))"]
    words += ["hydra.sweeper.n_trials=5", "hydra.sweeper.tpe.n_startup_trials=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert cold(whole, *MODULE, *words).returncode == 0
    run = subprocess.Popen([*MODULE, *words], cwd=killed, env=COLD, stdout=subprocess.DEVNULL)
    while not (killed / "found" / "2" / "optimizer.json").exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    again = cold(killed, *MODULE, *words)
    assert again.returncode == 0, again.stderr
    assert "5 ended, 0 pruned, 0 still run" in again.stdout
    done = int(re.search(r"5 trials by tpe, (\d) of them done", again.stdout)[1])
    assert done in (2, 3)
    scores = [
        sorted(row["val/gll"] for row in board(folder / "found") if row["val/gll"] != "no result")
        for folder in (whole, killed)
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 5
    assert (killed / "found" / "importance.png").stat().st_size
    nothing_remains = cold(killed, *MODULE, *words)
    assert "5 trials by tpe, 5 of them done" in nothing_remains.stdout
    assert nothing_remains.returncode == 0, nothing_remains.stderr


@pytest.mark.full
def test_a_run_of_two_processes_is_pruned_in_both(tmp_path):
    words = [*shlex.split(SEARCH)[1:], "training.epochs=3", "training.accelerator=cpu"]
    words += ["training.devices=2", "optimizer.lr=1e-9,1e-2", "hydra.sweeper.sampler=grid"]
    words += ["hydra.sweeper.pruner=median", "hydra.sweeper.median.n_startup_trials=1"]
    run = cold(tmp_path, *MODULE, *words)
    assert run.returncode == 0, run.stderr
    assert [row["pruned"] for row in board(tmp_path / "found")] == ["", "after epoch 1"]


@pytest.mark.full
def test_two_processes_search_at_once(tmp_path):
    words = [*shlex.split(SEARCH)[1:], "optimizer.lr=interval(1e-4,1e-1)"]
    words += ["hydra.sweeper.n_trials=6"]
    both = [subprocess.Popen([*MODULE, *words], cwd=tmp_path, env=COLD, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    rows = board(tmp_path / "found")
    assert sorted(row["run"] for row in rows) == list("012345")
    assert len({row["optimizer.lr"] for row in rows}) == 6


@pytest.mark.full
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=3", "hydra.sweeper.n_jobs=2"],
    ],
)
def test_runs_at_once(launcher, tmp_path):
    """A search of three, two at a time; then a grid of two."""
    words = [*shlex.split(SEARCH)[1:], "optimizer.lr=interval(1e-4,1e-1)", *launcher]
    run = subprocess.run([*MODULE, *words, "hydra.sweeper.n_trials=3"], cwd=tmp_path, env=COLD,
                         capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [row["val/gll"] for row in board(tmp_path / "found")].count("no result") == 0
    assert len(board(tmp_path / "found")) == 3
    grid = ["train", "-m", *QUICK.split(), "optimizer=sgd,lion", "hydra.sweep.dir=grid"]
    run = subprocess.run([*MODULE, *grid, *launcher[:2]], cwd=tmp_path, env=COLD,
                         capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(board(tmp_path / "grid")) == 2
