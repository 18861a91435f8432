"""What a logger was given is what the run did, step by step, also of a run that was cut short."""

import csv
import json
import struct
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import spectramind_fused as ours
from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.compose import composed
from spectramind_fused.config.packaged import packaged_configs
from spectramind_fused.training import history, loop, report, settings, watch
from spectramind_fused.training.history import Epoch
from spectramind_fused.training.loggers import Log
from spectramind_fused.training.settings import LoggerSettings, parse_run
from spectramind_fused.training.watch import Watch
from tests.command_line import MODULE, cold

QUIET = ["optimizer.rich_console=false", "optimizer.hash_to_debuglog=false"]
SMALL = ["data=synthetic", "model.hidden=[8]", "training.batch_size=32", "scheduler.warmup_steps=5"]
SMALL += [*QUIET, "optimizer.export_json=null"]
STEPS = 40  # of an epoch: 1,280 spectra


def config(*words):
    (job,) = composed(packaged_configs(), "train", [*SMALL, *words])
    return job.config


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains in a folder of this name; returns it."""
    monkeypatch.chdir(tmp_path)

    def train(name, *words):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        loop.train(config(*words), folder, list(words))
        return folder

    return train


def rows(path):
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def scalars(folder):
    """Every figure that TensorBoard would show: tag -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "log"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }, events


@pytest.fixture
def seen(monkeypatch):
    """What each step was, found out by other means, while everything is still there."""
    found = []
    step = Watch.step

    def look(self, loss):
        grads = [p.grad for g in self._optimizer.param_groups for p in g["params"]]
        norm = nn.utils.get_total_norm(grads).item()
        found.append((loss.item(), norm, self._optimizer.param_groups[1]["lr"]))
        step(self, loss)

    monkeypatch.setattr(Watch, "step", look)
    return found


def test_tensorboard_shows_every_step_and_what_history_and_result_say(run, seen, monkeypatch):
    monkeypatch.setattr(watch, "_TOGETHER", 15)  # an epoch's end may come in between
    folder = run("run", "logger=tensorboard", "training.epochs=3", "optimizer.clip_grad_norm=0.5")
    shown, events = scalars(folder)
    assert len(seen) == 3 * STEPS
    numbers = [*range(1, 3 * STEPS + 1)]
    losses, norms, lrs = map(list, zip(*seen, strict=True))
    clips = [min(1, 0.5 / (norm + 1e-6)) for norm in norms]
    for tag, values in (("train/loss", losses), ("grad/norm", norms), ("lr/group_1", lrs),
                        ("lr/group_0", lrs), ("grad/clip", clips)):  # fmt: skip
        assert [step for step, _ in shown[tag]] == numbers
        assert [value for _, value in shown[tag]] == pytest.approx(values, rel=1e-5)
    assert "grad/skipped" not in shown  # there is no scaler

    epochs = rows(folder / "history.csv")
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    for i, epoch in enumerate(epochs):
        of_epoch = slice(i * STEPS, (i + 1) * STEPS)
        assert epoch["train/gll"] == pytest.approx(sum(losses[of_epoch]) / STEPS, rel=1e-6)
        clipped = sum(clip < 1 for clip in clips[of_epoch])
        assert epoch["grad/share_clipped"] == clipped / STEPS
        assert epoch["grad/steps_skipped"] == 0
        middle = sorted(norms[of_epoch])[STEPS // 2 - 1 : STEPS // 2 + 1]
        assert middle[0] * (1 - 1e-5) <= epoch["grad/median_norm"] <= middle[1] * (1 + 1e-5)
        for tag, value in epoch.items():
            step, logged = shown[tag][i + (tag == "val/gll")]  # that of the beginning comes first
            assert (step, logged) == ((i + 1) * STEPS, pytest.approx(value, rel=1e-6))
    assert 0 < epochs[0]["grad/share_clipped"] < 1
    result = json.loads((folder / "result.json").read_text())["val/gll"]
    assert shown["val/gll"][-1] == (3 * STEPS, pytest.approx(result, rel=1e-6))
    assert shown["val/gll"][0][0] == 0

    started = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    given = HParamsPluginData.FromString(started).session_start_info.hparams
    assert given["optimizer.lr"].number_value == 3e-4
    assert given["optimizer.type"].string_value == "AdamW"


def test_csv_holds_every_so_many_steps_and_all_epochs(run, seen):
    folder = run("run", "logger=csv", "logger.every=7", "training.epochs=2")
    logged = rows(folder / "log" / "metrics.csv")
    steps = {row["step"]: row["train/loss"] for row in logged if "train/loss" in row}
    assert list(steps) == [*range(7, 2 * STEPS + 1, 7)]
    assert [*steps.values()] == [pytest.approx(loss) for loss, _, _ in seen[6::7]]
    assert [row["step"] for row in logged if "val/gll" in row] == [0, STEPS, 2 * STEPS]
    given = json.loads((folder / "log" / "hyperparameters.json").read_text())
    assert given["training.epochs"] == 2
    assert given["logger.every"] == 7


def test_without_a_clip_there_is_no_norm_to_log(run, capsys):
    words = ["optimizer.clip_grad_norm=null", "training.epochs=1"]
    folder = run("run", "logger=csv", *words)
    assert not {"grad/norm", "grad/clip", "grad/median_norm"} & {*rows(folder / "history.csv")[0]}
    assert not any("grad/norm" in row for row in rows(folder / "log" / "metrics.csv"))
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith("epoch"))
    assert line.endswith("lr 1.00e-06")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("csv", "its own folder"),
        ("tensorboard", "another folder"),
        pytest.param("csv", "another folder", marks=pytest.mark.full),
        pytest.param("tensorboard", "its own folder", marks=pytest.mark.full),
    ],
)
def test_a_run_that_was_cut_short_and_resumed_has_the_log_of_one_that_was_not(
    name, where, run, monkeypatch, tmp_path
):
    """Cut after the last epoch but one was logged: the checkpoint is of the epoch before."""
    words = [f"logger={name}", "training.epochs=4", "training.checkpoint_every=2"]
    whole = run("whole", *words)

    add = history.add

    def cut(folder, epoch):
        add(folder, epoch)
        if epoch.number == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(history, "add", cut)
        with pytest.raises(KeyboardInterrupt):
            run("cut", *words)
    resume = f"training.resume={tmp_path}/cut/checkpoint.pt"
    left = (tmp_path / "cut" / "history.csv").read_text()
    resumed = run("cut" if where == "its own folder" else "resumed", *words, resume)

    assert (resumed / "history.csv").read_text() == (whole / "history.csv").read_text()
    if name == "csv":
        first, second = (rows(f / "log" / "metrics.csv") for f in (whole, resumed))
    else:
        first, second = (scalars(f)[0] for f in (whole, resumed))
    assert first == second
    if where == "another folder":
        assert (tmp_path / "cut" / "history.csv").read_text() == left


def test_a_new_run_in_the_folder_of_an_old_one_begins_anew(run):
    for _ in range(2):
        folder = run("run", "logger=tensorboard", "training.epochs=1")
    assert [step for step, _ in scalars(folder)[0]["train/loss"]] == [*range(1, STEPS + 1)]
    assert len(rows(folder / "history.csv")) == 1


def watched(optimizer, log):
    fabric = SimpleNamespace(all_reduce=lambda tensor, reduce_op: tensor)
    return Watch(fabric, optimizer, log, 0)


def test_nothing_is_read_from_the_device_but_every_hundred_steps(tmp_path):
    """A meta tensor has no values: whoever reads one fails."""
    held = torch.zeros((), device="meta")
    optimizer = SimpleNamespace(
        grad_norm=held, skipped=held.bool(), param_groups=[{"lr": 0.1}], clip_grad_norm=1.0
    )
    watching = watched(optimizer, Log(LoggerSettings(), tmp_path))
    for _ in range(99):
        watching.step(held)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        watching.step(held)


@pytest.mark.parametrize("scaler", [torch.amp.GradScaler, ours.GradScaler], ids=["torch's", "ours"])
def test_skipped_steps_are_counted_and_hide_nothing(scaler, tmp_path):
    param = nn.Parameter(torch.zeros(4))
    optimizer = ours.FusedAdamW([param], clip_grad_norm=1.0)
    scaler = scaler("cpu", init_scale=4.0)
    log = Log(LoggerSettings("csv"), tmp_path)
    assert log.open(0, tmp_path, {}, 0.0) is None
    watching = watched(optimizer, log)
    for value in (0.25, float("inf"), 1.0):
        scale = scaler.scale(torch.ones(())).item()
        param.grad = torch.full((4,), value * scale)
        scaler.step(optimizer)
        watching.step(torch.ones(()))
        scaler.update()
    epoch = watching.epoch(1, 2.0)
    assert epoch.skipped == 1
    assert epoch.clipped == pytest.approx(1 / 3)
    assert epoch.norm == pytest.approx(1.25)  # between 0.5 and 2
    log.__exit__(None, None, None)
    steps = [row for row in rows(tmp_path / "log" / "metrics.csv") if "grad/skipped" in row]
    assert [row["grad/skipped"] for row in steps] == [0, 1, 0]
    assert [steps[i]["grad/norm"] for i in (0, 2)] == [0.5, 2]


def test_the_epochs_line_shows_norm_clips_and_skips_in_100_columns(capsys):
    with report.progress(30, True) as show:
        show(Epoch(30, -2.25, -10.5, 3e-4, 12345.678, 1.0, 3))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("lr 3.00e-04  norm 1.23e+04  clips 100%  skipped 3")
    assert len(line) <= 100


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_with_the_extra(name, monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda package: None)
    with pytest.raises(ConfigError) as refused:
        parse_run(config(f"logger={name}", "++optimizer.lrr=1"))
    said = refused.value.problems
    assert len(said) == 2  # beside the other mistake
    assert f"logger.name {name} needs the package" in said[1]
    assert said[1].endswith(": pip install 'spectramind-fused[loggers]'.")


def test_a_folder_that_a_logger_left_is_not_taken_for_its_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("no_such_package") is not None
    assert not settings._is_there("no_such_package")


def test_a_logger_that_fails_on_the_way_ends_and_the_run_goes_on(tmp_path):
    log = Log(LoggerSettings("csv"), tmp_path)
    assert log.open(0, tmp_path, {}, 0.0) is None
    (tmp_path / "log" / "metrics.csv").mkdir()
    with pytest.warns(UserWarning, match="logger=csv failed, and logs no more: .*The run goes on"):
        log.write([(1, {"train/loss": 1.0})])
    log.write([(2, {"train/loss": 1.0})])


def offline(tmp_path, name):
    """A run of two epochs by the command line, cut from the network; returns folder and home."""
    home = tmp_path / "home"
    environment = {"HOME": str(home), "WANDB_CACHE_DIR": str(home), "WANDB_CONFIG_DIR": str(home)}
    environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    words = [*SMALL, "training.epochs=2", "training.checkpoint_every=1", "hydra.run.dir=run"]
    for more in ([], ["training.epochs=3", "training.resume=run/checkpoint.pt"]):
        done = cold(tmp_path, *MODULE, "train", f"logger={name}", *words, *more, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr in ("", "warning: resumed with another training.epochs than before.\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "home"}
    return tmp_path / "run"


def wandb_rows(path):
    """What was logged to an offline run: records in blocks of 32 KiB, as LevelDB has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, held = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record, held = Record.FromString(held), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


@pytest.mark.full
def test_wandb_offline_in_the_runs_folder(tmp_path):
    pytest.importorskip("wandb")
    pytest.importorskip("pytorch_lightning")
    folder = offline(tmp_path, "wandb")
    run_id = (folder / "log" / "wandb_run_id.txt").read_text().strip()
    parts = sorted((folder / "log" / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(parts) == 2  # the second goes on with the run of the first
    logged = [row for part in parts for row in wandb_rows(part)]
    steps = [int(row["trainer/global_step"]) for row in logged if "train/loss" in row]
    assert steps == [*range(1, 3 * STEPS + 1)]
    scores = [row["val/gll"] for row in logged if "grad/median_norm" in row]
    assert scores == [epoch["val/gll"] for epoch in rows(folder / "history.csv")]


@pytest.mark.full
def test_mlflow_in_the_runs_folder(tmp_path):
    for package in ("mlflow", "sqlalchemy", "alembic", "pytorch_lightning"):
        pytest.importorskip(package)
    folder = offline(tmp_path, "mlflow")
    script = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
run = client.get_run(open(f"{sys.argv[1]}/mlflow_run_id.txt").read().strip())
figures = {key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
           for key in run.data.metrics}
runs = len(client.search_runs([run.info.experiment_id]))
print(json.dumps([run.info.status, run.data.params, figures, runs]))
"""
    read = cold(tmp_path, sys.executable, "-c", script, str(folder / "log"), HOME=str(tmp_path))
    assert read.returncode == 0, read.stderr
    status, given, figures, runs = json.loads(read.stdout)
    assert (status, runs) == ("FINISHED", 1)  # the second goes on with the run of the first
    assert given["optimizer.lr"] == "0.0003"
    assert [step for step, _ in figures["train/loss"]] == [*range(1, 3 * STEPS + 1)]
    epochs = rows(folder / "history.csv")
    assert figures["val/gll"][1:] == [[e["epoch"] * STEPS, e["val/gll"]] for e in epochs]
