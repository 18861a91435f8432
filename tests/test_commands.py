"""check, doctor, help, tab completion, configs of the user's own, and leaderboards."""

import csv
import json
import os
import re

import pytest
import torch

from spectramind_fused.cli import COMMANDS
from spectramind_fused.config.packaged import packaged_configs
from spectramind_fused.training import leaderboard
from tests.command_line import QUICK, shell
from tests.test_cli import SHIPPED

NADAM = """# @package _global_
optimizer:
  name: nadam
  type: NAdam
  lr: 2.0e-3
  weight_decay: 0.01
  momentum_decay: 0.01
  lookahead: {enabled: true, alpha: 0.5, k: 6}
  auto_param_groups: {enabled: true}
  clip_grad_norm: 1.0
"""


def test_help_lists_the_commands(tmp_path):
    run = shell("spectramind --help", tmp_path)
    for command in COMMANDS:
        assert f"\n  {command} " in run.stdout
    assert "usage: spectramind COMMAND" in shell("spectramind doctor --help", tmp_path).stdout
    for command in ("train", "check"):
        run = shell(f"spectramind {command} --help", tmp_path)
        assert run.returncode == 0
    assert f"optimizer: {', '.join(SHIPPED)}" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_check_prints_the_resolved_table_and_writes_nothing(tmp_path):
    words = "optimizer=lion optimizer.fused=true optimizer.lr=5e-4 optimizer.lookahead.enabled=true"
    run = shell(f"spectramind check {words}", tmp_path)
    assert run.returncode == 0, run.stderr
    for shown in ("lion: FusedLion", "0.0005", "k=6, alpha=0.5", "cosine, 30 warm-up steps",
                  "pattern 'bias'", "in a LayerNorm", "no pattern matches"):  # fmt: skip
        assert shown in run.stdout
    run = shell("spectramind check optimizer.lrr=1", tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "did you mean 'lr'?" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "recipe", sorted(p.stem for p in packaged_configs().glob("experiment/optimizer_sweeps/*.yaml"))
)
def test_check_reads_the_values_of_a_sweep_recipe(recipe, tmp_path):
    text = (packaged_configs() / f"experiment/optimizer_sweeps/{recipe}.yaml").read_text()
    assert f"spectramind train experiment=optimizer_sweeps/{recipe}\n" in text
    run = shell(f"spectramind check experiment=optimizer_sweeps/{recipe}", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "This is a sweep" in run.stdout
    wrong = shell(
        f"spectramind check experiment=optimizer_sweeps/{recipe} optimizer.lr=1e-3,x", tmp_path
    )
    assert wrong.returncode == 2
    assert "not 'x'" in wrong.stderr


def test_check_names_what_is_wrong_in_every_job_of_a_sweep(tmp_path):
    run = shell("spectramind check -m optimizer.lr=x,1e-3,y optimizer.eps=1e-8,z", tmp_path)
    assert run.returncode == 2
    for value in "xyz":
        assert run.stderr.count(f"not '{value}'") == 1


def test_doctor_says_what_runs_and_why_the_rest_does_not(tmp_path):
    run = shell("spectramind doctor", tmp_path)
    assert run.returncode == 0, run.stderr
    assert torch.__version__ in run.stdout
    assert "takes cpu" in run.stdout
    if not torch.cuda.is_available():
        assert "none found; this torch is built for" in run.stdout
        assert "cannot run: Triton finds no GPU" in " ".join(run.stdout.split())
    assert "takes no arguments" in shell("spectramind doctor now", tmp_path).stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spectramind ", COMMANDS),
        ("spectramind tr", ["train"]),
        ("spectramind train optimizer=", [f"optimizer={name}" for name in SHIPPED]),
        ("spectramind -m train optimizer=ada", [f"optimizer={name}" for name in SHIPPED
                                                if name.startswith("ada")]),
        ("spectramind check optimizer=sgd optimizer.mom", ["optimizer.momentum="]),
        ("spectramind train policy=b", ["policy=best-val"]),
        ("spectramind train experiment=optimizer_sweeps/search_adamw optimizer.mas",
         ["optimizer.master_weights="]),
        ("spectramind train -m hydra/sweeper=s", ["hydra/sweeper=search"]),
        ("spectramind train --config-dir mine optimizer=o", ["optimizer=own"]),
        ("spectramind compare mi", ["mine/"]),
        ("spectramind compare mine/", ["mine/optimizer/"]),
        ("spectramind compare mine --o", ["--out"]),
    ],
)  # fmt: skip
def test_tab_completes(line, expected, tmp_path):
    """Through the very functions that bash calls."""
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "own.yaml").write_text(NADAM)
    script = 'eval "$(spectramind -sc install=bash)"; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    cursor = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    cursor["COMP_CWORD"] = str(len(line.split()) - (not line.endswith(" ")))
    run = shell(script, tmp_path, **cursor)
    assert sorted(run.stdout.split()) == sorted(expected), run.stderr


def own_configs(folder, **files):
    for name, text in files.items():
        path = folder / "mine" / "optimizer" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_ten_lines_of_yaml_are_an_optimizer(tmp_path):
    own_configs(tmp_path, nadam=NADAM)
    assert NADAM.count("\n") == 10
    run = shell(f"spectramind train --config-dir mine optimizer=nadam {QUICK}", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "nadam: FusedNAdam" in run.stdout
    (path,) = tmp_path.glob("outputs/train/*/*/optimizer.json")
    record = json.loads(path.read_text())
    assert record["class"] == "FusedNAdam"
    assert record["backend"] == {"cpu": "eager (fused: false)"}
    assert [g["lookahead_k"] for g in record["param_groups"]] == [6, 6]
    fused = shell(
        f"spectramind train --config-dir mine optimizer=nadam optimizer.fused=true {QUICK}",
        tmp_path,
    )
    assert re.search(r"backend on cpu +│ cpu ", fused.stdout)
    assert "Warning" not in fused.stderr


def test_a_users_file_wins_over_ours_of_the_same_name(tmp_path):
    own_configs(tmp_path, adamw=NADAM)
    for flags in ("--config-dir mine", "--config-dir=mine", "-cd mine"):
        run = shell(f"spectramind check {flags} optimizer=adamw", tmp_path)
        assert "nadam: FusedNAdam" in run.stdout, run.stderr
    run = shell(f"spectramind train --config-dir mine optimizer=adamw {QUICK}", tmp_path)
    assert "nadam: FusedNAdam" in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NADAM.replace("lr:", "lrr:"), "optimizer.lrr is no known key: did you mean 'lr'?"),
        (NADAM.replace("# @package _global_\n", ""), "begin the YAML file with the line `# @"),
        ("optimizer: [", "optimizer/nadam.yaml"),
        (NADAM.replace("NAdam", "LBFGS"), "LBFGS runs the model several times a step"),
        (NADAM.replace("NAdam", "Rprop"), "should be false: Rprop has no weight decay"),
        (NADAM.replace("0.01\n  lo", "-1\n  lo"), "optimizer: Invalid momentum_decay value: -1.0."),
        (NADAM.replace("1.0\n", "${nowhere}\n"), "nowhere"),
    ],
)  # fmt: skip
def test_a_users_file_is_checked_like_the_command_line(text, message, tmp_path):
    own_configs(tmp_path, nadam=text)
    run = shell("spectramind train --config-dir mine optimizer=nadam", tmp_path)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert os.listdir(tmp_path) == ["mine"]


def test_a_policy_is_not_handed_to_another_optimizer_unnoticed(tmp_path):
    run = shell("spectramind check policy=best-val optimizer=sgd", tmp_path)
    assert run.returncode == 2
    assert "policy.type is AdamW: the values of best-val are tuned for it, not for SG" in run.stderr
    words = "policy=best-val optimizer=sgd policy.type=SGD optimizer.lr=0.1"
    assert shell(f"spectramind check {words}", tmp_path).returncode == 0


@pytest.fixture
def sweep(tmp_path):
    """Three jobs of a sweep: one ended, one diverged, one was cut short."""
    for i, (lr, score) in enumerate([("1e-3", -2.0), ("1", float("nan")), ("3e-3", None)]):
        (tmp_path / str(i) / ".hydra").mkdir(parents=True)
        overrides = f"- optimizer=adamw\n- ++optimizer.lr={lr}\n"
        (tmp_path / str(i) / ".hydra" / "overrides.yaml").write_text(overrides)
        (tmp_path / str(i) / "optimizer.json").write_text(json.dumps({"config_hash": f"{i}" * 64}))
        result = {"val/gll": score, "calibration": {"within 1 sigma": 0.7}}
        if score is not None:
            (tmp_path / str(i) / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_a_leaderboard_ranks_and_leaves_nothing_out(sweep):
    leaderboard.write(sweep)
    with (sweep / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["0", "1", "2"]
    assert [row["val/gll"] for row in rows] == ["-2.0000", "nan", "no result"]
    assert [row["optimizer.lr"] for row in rows] == ["1e-3", "1", "3e-3"]
    assert rows[0]["config hash"] == "0" * 12
    assert "optimizer" not in rows[0]  # the same in all
    lines = (sweep / "leaderboard.md").read_text().splitlines()
    assert lines[0].startswith("| rank | val/gll | within 1 sigma | optimizer.lr |")
    assert lines[2].startswith("| 1 | -2.0000 | 0.7000 | 1e-3 |")


def test_the_extension_guide_works_as_it_is_written(tmp_path):
    """Steps 1 and 3 of the guide, from the README's own lines; step 4 in one epoch."""
    guide = (packaged_configs() / "optimizer" / "README.md").read_text()
    (yaml,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    path = tmp_path / "my_configs" / "optimizer" / "ranger.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml)
    check, smoke, ablate = re.findall(r"`(spectramind [^`]*my_configs[^`]*)`", guide)
    assert "ranger: FusedRAdam" in shell(check, tmp_path).stdout
    run = shell(smoke, tmp_path)
    assert run.returncode == 0, run.stderr
    run = shell(f"{ablate} {QUICK}", tmp_path)
    assert run.returncode == 0, run.stderr
    (board,) = tmp_path.glob("outputs/multirun/*/*/leaderboard.csv")
    with board.open(newline="") as file:
        assert (
            sorted(row["optimizer"] for row in csv.DictReader(file))
            == ["adamw"] * 2 + ["ranger"] * 2
        )
    assert len(list(tmp_path.glob("outputs/multirun/*/*/*/history.csv"))) == 4
