"""What a killed process leaves: what removes it, and that nobody reads half of anything."""

import os
import subprocess
import sys
import zipfile

import pytest

from spectramind_fused import files
from spectramind_fused.config import records
from spectramind_fused.config.check import ConfigError
from spectramind_fused.training import checkpoint, history, kept
from spectramind_fused.training.csv_log import CsvLog
from spectramind_fused.training.history import Epoch
from spectramind_fused.training.past_runs import PastRun
from tests.command_line import refused, spectramind
from tests.config.test_records import RECORD
from tests.training.test_loggers import rows


def names(folder):
    return sorted(os.listdir(folder))


def test_the_next_who_writes_a_file_removes_the_part_of_a_killed_process(tmp_path):
    for name in (".a.txt.1.part", ".b.txt.1.part", ".a.txt.part", "a.txt.1.part"):
        (tmp_path / name).write_text("half")
    files.write_whole(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == [".a.txt.part", ".b.txt.1.part", "a.txt", "a.txt.1.part"]
    files.remove_parts(tmp_path)
    assert names(tmp_path) == [".a.txt.part", "a.txt", "a.txt.1.part"]  # these are not ours
    files.remove_parts(tmp_path / "nowhere")


def test_what_another_process_is_writing_stays(tmp_path):
    writes = """
import sys
from pathlib import Path
from spectramind_fused.files import whole
with whole(Path("a.txt")) as file:
    file.write(b"theirs")
    print("writing", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", writes], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == "writing\n"
    files.write_whole(tmp_path / "a.txt", "ours")
    files.remove_parts(tmp_path)
    assert names(tmp_path) == [f".a.txt.{other.pid}.part", "a.txt"]
    other.communicate()
    assert other.returncode == 0
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "theirs"


def test_a_part_is_held_until_it_is_in_place(tmp_path, monkeypatch):
    replace = os.replace

    def meanwhile(part, path):
        files.remove_parts(tmp_path)
        replace(part, path)

    monkeypatch.setattr(os, "replace", meanwhile)
    files.write_whole(tmp_path / "a.txt", "ours")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_put_in_place_in_one_go(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.stat("no such file"))
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("new")
    two.write_text("old")
    files.name_also(one, two)
    assert two.read_text() == "new"
    assert one.samefile(two) is links
    assert names(tmp_path) == ["one", "two"]


def put(folder, epoch, keep):
    kept.put(folder / "checkpoint.pt", epoch, keep, lambda file: file.write(b"%d" % epoch))


def numbered(folder):
    return [int(name[17:-3]) for name in names(folder) if name.startswith("checkpoint-epoch-")]


def test_the_last_few_checkpoints_stay(tmp_path):
    for epoch in (1, 3, 5):
        put(tmp_path, epoch, 2)
        assert (tmp_path / "checkpoint.pt").read_text() == str(epoch)
    assert numbered(tmp_path) == [3, 5]
    put(tmp_path, 4, 2)  # of a run that went back to 3
    assert numbered(tmp_path) == [3, 4]
    put(tmp_path, 12345, 3)
    assert numbered(tmp_path) == [3, 4, 12345]
    put(tmp_path, 12346, 1)  # removes none
    assert numbered(tmp_path) == [3, 4, 12345]
    assert (tmp_path / "checkpoint.pt").read_text() == "12346"


def test_none_is_removed_before_the_new_one_is_on_the_disk(tmp_path):
    for epoch in (1, 2):
        put(tmp_path, epoch, 2)

    def fails(file):
        file.write(b"3")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        kept.put(tmp_path / "checkpoint.pt", 3, 2, fails)
    assert numbered(tmp_path) == [1, 2]
    assert (tmp_path / "checkpoint.pt").read_text() == "2"


def test_what_a_killed_process_did_not_come_to_remove_goes_with_the_next_run(tmp_path):
    for epoch in (1, 2, 3, 9):
        (tmp_path / f"checkpoint-epoch-{epoch:04}.pt").touch()
    (tmp_path / ".checkpoint.pt.1.part").touch()
    kept.tidy(tmp_path, tmp_path / "nowhere", 3, 2)
    assert names(tmp_path) == [f"checkpoint-epoch-000{i}.pt" for i in (2, 3, 9)]


def flip(path):
    """One bit of a tensor, which torch.load does not notice."""
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if "/data/" in e.filename and e.file_size > 100)
        before = archive.read(entry)
    content = bytearray(path.read_bytes())
    content[content.index(before) + 50] ^= 1
    path.unlink()  # or the other name of the file has it too
    path.write_bytes(content)


def test_a_damaged_checkpoint_names_one_that_can_be_used(tmp_path):
    words = ["train", "data=synthetic", "data.channels=4", "data.bins=8", "model.hidden=[4]",
             "training.batch_size=256", "training.checkpoint_every=1", "hydra.run.dir=run",
             "scheduler.warmup_steps=2"]  # fmt: skip
    more = ["training.epochs=3", "training.keep_checkpoints=3"]
    assert spectramind(tmp_path, *words, *more).returncode == 0
    run = tmp_path / "run"
    assert numbered(run) == [1, 2, 3]
    flip(run / "checkpoint.pt")
    flip(run / "checkpoint-epoch-0003.pt")
    with pytest.raises(ConfigError) as error:
        checkpoint.load(run / "checkpoint.pt", 3)
    assert "data/" in str(error.value)
    assert "in it is damaged): give " in str(error.value)
    assert f"give {run / 'checkpoint-epoch-0002.pt'} instead, which has 2 epochs" in str(
        error.value
    )

    path = run / "checkpoint.pt"
    path.unlink()
    told = refused(f"spectramind {' '.join(words)} training.resume=run/checkpoint.pt", tmp_path)
    usable = "run/checkpoint-epoch-0002.pt"
    assert f"is no file: give {usable} instead, which has 2 epochs behind it." in told
    assert checkpoint.missing(path, 1).endswith("-0001.pt instead, which has 1 epoch behind it")
    for other in run.glob("checkpoint-*.pt"):
        other.unlink()
    begins = "the run in this folder ended before its first checkpoint. Leave training.resume out"
    assert checkpoint.missing(path, 3).startswith(begins)
    assert checkpoint.missing(tmp_path / "checkpoint.pt", 3) == "give the path of a checkpoint.pt"


def test_a_row_of_history_that_was_cut_off_is_none(tmp_path):
    """Cut after its first digit, that of epoch 10 reads as one of epoch 1."""
    history.begin(tmp_path, 0, tmp_path)
    for number in range(1, 11):
        history.add(tmp_path, Epoch(number, 1.5, -12.25, 0.1, 2.0, None, 0))
    path = tmp_path / "history.csv"
    text = path.read_text()
    start = text.rindex("10,")
    for cut in range(start, len(text)):
        path.write_text(text[:cut])
        assert PastRun(tmp_path).history == dict.fromkeys(range(1, 10), -12.25)
        history.begin(tmp_path, 9, tmp_path)
        assert path.read_text() == text[:start]


def test_a_csv_log_that_was_cut_off_goes_on(tmp_path):
    log = CsvLog(tmp_path, None)
    for step in range(1, 11):
        log.log_metrics({"loss": step / 2}, step)
    log.save()
    log.log_metrics({"val": 3.0}, 10)  # a new column
    log.save()
    path = tmp_path / "metrics.csv"
    text = path.read_text()
    expected = [{"loss": step / 2, "step": step} for step in range(1, 9)]
    for cut in range(text.index(",8,"), len(text)):
        path.write_text(text[:cut])
        CsvLog(tmp_path, 8).finalize("failed")
        left = [row for row in expected if f"{row['loss']},{row['step']},\n" in text[:cut]]
        assert rows(path) == left


def test_an_entry_of_the_audit_log_is_whole_or_not_there(tmp_path, monkeypatch):
    log = tmp_path / "log.md"
    records.append_debug_log(RECORD, log)
    first = log.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            records.append_debug_log(RECORD, log)
    assert log.read_bytes() == first
    records.append_debug_log(RECORD, log)
    assert log.read_bytes().count(first.split("\n⸻\n".encode())[1]) == 2
