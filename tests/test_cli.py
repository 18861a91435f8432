"""The command line: the contract's lines word for word, and what a typo answers."""

import sys

import pytest

from spectramind_fused import cli
from spectramind_fused.cli.arguments import flags_and_overrides
from spectramind_fused.config.packaged import packaged_configs
from tests.command_line import MODULE, QUICK, cold, shell

SHIPPED = sorted(path.stem for path in (packaged_configs() / "optimizer").glob("*.yaml"))

# Sections 3 and 8 of the contract, the roadmap of section 11, and the smoke test of section 9.
LINES = {
    "3B switch": "spectramind train optimizer=adamw",
    "3B tweak": "spectramind train optimizer=adamw optimizer.lr=5e-4 optimizer.weight_decay=0.02",
    "3C": r"""spectramind train optimizer=adamw \
  optimizer.lookahead.enabled=true optimizer.lookahead.alpha=0.5 optimizer.lookahead.k=6""",
    "8A": r"""spectramind -m train optimizer=adamw \
  optimizer.lr=1e-4,3e-4,1e-3 \
  optimizer.weight_decay=0.0,0.01,0.02""",
    "8B": r"""spectramind -m train optimizer=adamw,adam,sgd \
  scheduler.name=cosine scheduler.warmup_steps=500 scheduler.min_lr=1e-6""",
    "8C": r"""spectramind train optimizer=sgd optimizer.lookahead.enabled=true \
  optimizer.lookahead.alpha=0.5 optimizer.lookahead.k=6 \
  optimizer.lr=1e-2 optimizer.momentum=0.9""",
    "11 lookahead": "spectramind train optimizer=lookahead base=sgd",
    "11 lookahead sweep": "spectramind -m train optimizer=lookahead base=adam,sgd",
    "11 policy": "spectramind train policy=fast-train training.epochs=8",
    "11 auto-tuner": "spectramind train experiment=optimizer_sweeps/policies training.epochs=2",
}
LINES |= {
    f"9.3 {name}": f"spectramind train optimizer={name} training.epochs=1" for name in SHIPPED
}
RUNS = {"8A": 9, "8B": 3, "11 lookahead sweep": 2, "11 auto-tuner": 3}


# What the tests have `spectramind` add to a line: the smallest run that shows what it does.
SMALL = "data=synthetic model.hidden=[16] training.epochs=1"


@pytest.mark.parametrize("section", LINES)
def test_the_lines_of_the_contract_run_word_for_word(section, tmp_path):
    run = shell(LINES[section], tmp_path, SPECTRAMIND_TEST_WORDS=SMALL)
    assert run.returncode == 0, run.stderr
    runs = RUNS.get(section, 1)
    assert len(list(tmp_path.rglob("result.json"))) == runs
    log = (tmp_path / "logs" / "v50_debug_log.md").read_text()
    assert log.count("— spectramind train\n") == runs
    if runs > 1:
        (board,) = tmp_path.glob("outputs/multirun/*/*/leaderboard.md")
        assert board.read_text().count("\n") == runs + 2
        assert "leaderboard: val/gll" in run.stdout
    else:  # a sweeper writes its words anew
        typed = [w for w in LINES[section].replace("\\\n", " ").split() if "=" in w]
        assert f"\t• overrides: {' '.join(typed)} {SMALL}\n" in log


def test_the_first_line_runs_as_a_user_types_it(tmp_path):
    """Nothing imported before, nothing made smaller: the default task to its end."""
    run = cold(tmp_path, "bash", "-c", LINES["3B switch"])
    assert run.returncode == 0, run.stderr
    assert "epoch  30/30" in run.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_multirun_works_behind_the_command_word_too(tmp_path):
    run = shell(
        "spectramind train data=synthetic training.epochs=1 -m optimizer=adam,sgd", tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "flags", "overrides"),
    [
        (["a=b", "-m", "c=1,2"], ["-m"], ["a=b", "c=1,2"]),
        (["a=b", "--config-dir", "x", "c=d"], ["--config-dir", "x"], ["a=b", "c=d"]),
        (["--config-dir=x", "c=-1"], ["--config-dir=x"], ["c=-1"]),
        (["~a", "+b=c"], [], ["~a", "+b=c"]),
    ],
)
def test_flags_may_stand_anywhere(arguments, flags, overrides):
    assert flags_and_overrides(arguments) == (flags, overrides)


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda module: None)
    monkeypatch.setattr(cli.warnings, "formatwarning", None)  # main sets it: put it back after
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train"])
    said = capsys.readouterr().err
    assert "needs lightning_fabric: pip install 'spectramind-fused[train]'" in said


def test_an_unknown_command_is_named(tmp_path):
    run = shell("spectramind trian optimizer=adamw", tmp_path)
    assert run.returncode == 2
    assert "'trian' is no command" in run.stderr
    for line in ("spectramind", "spectramind --help"):
        run = shell(line, tmp_path)
        assert run.returncode == 0
        assert "usage: spectramind COMMAND" in run.stdout


def test_a_key_the_yaml_leaves_out_can_be_set(tmp_path):
    run = shell(
        "spectramind train data=synthetic training.epochs=1 optimizer.maximize=true", tmp_path
    )
    assert run.returncode == 0, run.stderr
    log = (tmp_path / "logs" / "v50_debug_log.md").read_text()
    assert "optimizer.maximize=true" in log
    assert "++" not in log


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it raises
from spectramind_fused.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--help"], {}, "usage: spectramind COMMAND"),
        (["--version"], {}, "spectramind_fused 0."),
        (["-sc", "query=bash"], {"COMP_LINE": "spectramind tr"}, "train"),
        (["-sc", "query=bash"], {"COMP_LINE": "spectramind train optimizer=li"}, "optimizer=lion"),
        (["check", "optimizer=nope"], {}, "Could not find 'optimizer/nope'"),
        (["check", "--config-dir", "nowhere"], {}, "nowhere is no folder"),
    ],
)
def test_help_completion_and_first_errors_need_no_torch(words, environment, said, tmp_path):
    run = cold(tmp_path, sys.executable, "-c", WITHOUT_TORCH, *words, **environment)
    assert said in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("words", ["--help", "check optimizer=adamw"])
def test_a_reader_that_has_read_enough_is_no_error(words, tmp_path):
    # It begins when the reader is gone: else it may have written everything before.
    line = f"(sleep 0.5; exec spectramind {words}) | true; echo ${{PIPESTATUS[0]}}"
    run = cold(tmp_path, "bash", "-c", line)
    assert run.stderr == ""
    assert run.stdout == "1\n"


@pytest.mark.parametrize("words", [f"train {QUICK}", "doctor"])
def test_a_terminal_may_be_narrow_and_know_ascii_only(words, tmp_path):
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "20", "LC_ALL": "C"}
    run = cold(tmp_path, *MODULE, *words.split(), **environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()
    assert run.stderr == ""


@pytest.mark.parametrize("command", ["train", "check"])
def test_help_of_a_command_is_its_own(command, tmp_path):
    run = shell(f"spectramind {command} --help", tmp_path)
    assert run.stdout.startswith(f"spectramind {command} ")
    assert "powered by Hydra" not in run.stdout.splitlines()[0]


def test_an_unknown_public_name_is_an_attribute_error():
    import spectramind_fused

    assert {"FusedAdamW", "GradScaler", "build_optimizer"} <= set(dir(spectramind_fused))
    assert "FusedLion" in spectramind_fused.__all__
    for name in ("FusedNothing", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(spectramind_fused, name)
