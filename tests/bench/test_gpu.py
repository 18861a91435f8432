"""The script for a bare GPU machine: runs here but for the GPU, and loses nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.gpu import build, correctness, findings, sanitizer, table, traffic
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.phases import BUDGET, PHASES, Phase

ROOT = Path(__file__).parents[2]
PLANTED = {
    name: Phase(name, f"tests.bench.planted.{name}", limit, False, "")
    for name, limit in (("passes", 20), ("hangs", 2), ("fails", 20))
}


def script(out, *words, **environment):
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--played", "--out", str(out), *words],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run, json.loads(out.read_text())


def test_the_whole_script_runs_played_and_its_table_is_labelled(tmp_path):
    out = tmp_path / "played.json"
    run, held = script(out)
    assert run.returncode == 0, run.stdout
    assert list(held["phases"]) == [phase.name for phase in PHASES]
    assert {phase["outcome"] for phase in held["phases"].values()} == {"passed"}
    assert held["played"] is True
    assert all(phase["played"] for phase in held["phases"].values())
    assert set(held["versions"]) >= {"python", "torch", "triton"}
    found = {name: phase["found"] for name, phase in held["phases"].items()}
    assert found["device"]["backends"] == {"cpu": "triton"}
    assert found["correctness"]["passed_on"].keys() == {"triton", "cuda"}
    assert {row["backend"] for row in found["time"]["rows"]} >= {"triton", "cuda"}
    assert any(row["contender"].endswith(", graph") for row in found["time"]["rows"])
    updates = [row for row in found["traffic"]["kernels"] if row["kernel"] == "update"]
    for update, written in zip(updates, (12, 24), strict=True):
        assert update["written_per_parameter"] == update["written_by_formula"] == written
    assert found["sanitizer"]["racecheck"]["exit_code"] == 0
    assert len(found["sweep"]["best"]) == 2
    page = tmp_path / "page.md"
    assert readme.main(["--gpu", str(out), "--to", str(page)]) == 0
    tables = [text for text in page.read_text().split("\n") if text.startswith("| ---")]
    assert page.read_text().count(f"| {table.PLAYED}: ") == len(tables) == 5
    assert readme.main(["--gpu", str(out)]) == 2  # it goes to no page


@pytest.mark.full
@pytest.mark.parametrize("phase", [phase.name for phase in PHASES])
def test_a_failure_in_each_phase_shows(phase, tmp_path):
    run, held = script(tmp_path / "played.json", "--only", phase, PLAYED_FAULT=phase)
    assert run.returncode == 1
    assert held["phases"][phase]["outcome"] == "failed"
    assert "planted" in json.dumps(held["phases"][phase]) or phase == "build"
    assert f"these did not pass: {phase}" in run.stdout


def test_what_fails_or_hangs_takes_nothing_from_the_others(tmp_path, capsys):
    out = tmp_path / "out.json"
    phases = (PLANTED["hangs"], PLANTED["fails"], PLANTED["passes"])
    assert main(["--played", "--out", str(out)], phases) == 1
    held = json.loads(out.read_text())["phases"]
    assert [held[p.name]["outcome"] for p in phases] == ["timed out", "failed", "passed"]
    assert held["hangs"]["found"]["found_until_then"] == 2
    assert ended(held["hangs"]["found"]["child"])  # what it had started, too
    assert "CUDA error: planted" in held["fails"]["output_tail"]
    assert held["fails"]["found"]["problems"] == ["planted"]
    assert held["passes"]["found"]["found"] == 1
    assert "these did not pass: hangs, fails" in capsys.readouterr().out


def ended(pid):
    """A killed process is a zombie until its new parent has asked after it."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_later_run_adds_to_the_file_and_a_whole_one_puts_it_aside(tmp_path, capsys):
    out = tmp_path / "out.json"
    phases = (PLANTED["passes"], PLANTED["fails"])
    assert main(["--played", "--out", str(out), "--only", "passes"], phases) == 0
    assert main(["--played", "--out", str(out), "--only", "fails"], phases) == 1
    assert list(json.loads(out.read_text())["phases"]) == ["passes", "fails"]
    assert main(["--played", "--out", str(out)], phases[:1]) == 0
    assert list(json.loads(out.read_text())["phases"]) == ["passes"]
    aside = json.loads((tmp_path / "out.previous.json").read_text())
    assert list(aside["phases"]) == ["passes", "fails"]
    out.write_text(json.dumps({"played": False, "phases": {}}))
    assert main(["--played", "--out", str(out)], phases) == 2
    assert "holds measurements: give another file" in capsys.readouterr().err
    out.write_text("[]")
    assert main(["--played", "--out", str(out)], phases) == 2
    assert out.read_text() == "[]"


def test_a_python_without_torch_is_told_what_to_do(tmp_path):
    """As `make gpu` finds where torch is in another environment."""
    blocked = "import sys; sys.modules.update(torch=None, pytest=None); "
    start = "from benchmarks.gpu.__main__ import main; sys.exit(main(['--out', sys.argv[1]]))"
    command = [sys.executable, "-c", blocked + start, str(tmp_path / "gpu.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert "has no torch and no pytest: install what is missing, or name another Python" in line
    assert list(tmp_path.iterdir()) == []


def test_json_is_whole_at_any_moment(tmp_path):
    path = tmp_path / "a.json"
    findings.write(path, {"a": float("nan"), "b": (1, float("inf"))})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, None]}
    findings.write(path, {"said": f"in {findings.ROOT}/tests/place.py:3"})
    assert json.loads(path.read_text()) == {"said": "in tests/place.py:3"}
    findings.write(path, {"a": None, "b": [1, None]})
    with pytest.raises(TypeError):
        findings.write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, None]}


def test_both_commands_keep_within_ten_minutes():
    for deep in (False, True):
        assert sum(phase.limit for phase in PHASES if phase.deep == deep) <= BUDGET == 600
    assert len({phase.name for phase in PHASES}) == len(PHASES)


def test_a_compiler_that_fails_leaves_the_library_that_was(tmp_path, monkeypatch):
    (tmp_path / "_cpu.so").write_text("old")
    monkeypatch.setenv("CXX", "false")
    assert build.build("", tmp_path, ("cpu",))["cpu"].startswith("false failed")
    assert (tmp_path / "_cpu.so").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_of_tests_are_summed_up_also_while_they_run(tmp_path):
    lines = [
        {"test": "a[triton-1]", "outcome": "begun"},
        {"test": "a[triton-1]", "outcome": "passed", "seconds": 1, "said": ""},
        {"test": "b[cuda]", "outcome": "failed", "seconds": 1, "said": "assert 1 == 2"},
        {"test": "c", "outcome": "skipped", "seconds": 0, "said": "needs hypothesis"},
        {"test": "d[cuda]", "outcome": "begun"},
    ]
    file = tmp_path / "lines"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"half')
    found = correctness.summary([file, tmp_path / "absent"])
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["passed_on"] == {"triton": 1}
    assert found["failures"] == [{"test": "b[cuda]", "said": "assert 1 == 2"}]
    assert found["skipped_because"] == {"needs hypothesis": 1}
    assert found["running"] == ["d[cuda]"]


def test_a_sanitizers_summary_is_read():
    said = (
        "some output\n========= COMPUTE-SANITIZER\n"
        "========= Invalid __global__ read of size 4 bytes\n=========     at update\n"
        "========= ERROR SUMMARY: 1 error\n"
    )
    found = sanitizer.read(said)
    assert found["summary"] == "ERROR SUMMARY: 1 error"
    assert found["first"][1] == "Invalid __global__ read of size 4 bytes"
    assert sanitizer.read("Segmentation fault\n")["summary"] is None


def test_what_ncu_counts_is_read_in_bytes_and_nanoseconds():
    said = (
        "==PROF== Connected to process 1\n"
        '"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum",'
        '"gpu__time_duration.sum","launch__registers_per_thread"\n'
        '"","","Gbyte","Mbyte","us","register/thread"\n'
        '"0","void spectramind::update<float>","9","9","9","9"\n'
        '"1","void spectramind::update<float>","1.6","1,200.5","900","n/a"\n'
    )
    (_, update) = traffic.read(said)
    assert update[0] == "update"
    assert update[1] == {"read_bytes": 1.6e9, "written_bytes": 1200.5e6, "nanoseconds": 900e3}
    assert traffic.read("==ERROR== ERR_NVGPUCTRPERM") == []


def row(contender, ms, host=0.2, model="GPT-2 small", **others):
    base = {
        "model": model, "tensors": 148, "parameters": 124_439_808, "dtype": "float32",
        "program": "step", "optimizer": "AdamW", "contender": contender, "version": "1",
        "median_ms": ms, "host_median_ms": host, "of_copy_bandwidth": 0.95,
    }  # fmt: skip
    return {**base, **others}


@pytest.fixture
def measured(tmp_path):
    """A file as a GPU machine would write it, with figures made up for this test."""
    rows = [
        row("spectramind_fused", 1.5), row("spectramind_fused, graph", 1.4),
        row("torch, fused", 1.2), row("torch, fused, graph", 0.9),
        row("spectramind_fused", 0.04, model="2,000 x 550", parameters=1_100_000),
        row("spectramind_fused", 1.7, optimizer="NAdam"),
    ]  # fmt: skip
    left = [{"model": "llama8b", "dtype": "bfloat16", "program": "step", "compiled": False}]
    found = {"rows": rows, "facts": {"name": "GPU of a test"}, "left": left}
    phases = {"time": {"outcome": "timed out", "found": found}}
    versions = {"torch": "9.9", "triton": "8.8", "spectramind_fused": "7.7"}
    held = {"played": False, "date": "2030-01-02T03:04:05+00:00", "versions": versions}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({**held, "phases": phases}))
    return path


def test_a_measurement_becomes_the_pages_table_misses_included(measured):
    text = table.markdown(table.read(measured))
    assert "GPU of a test; torch 9.9, Triton 8.8, 7.7; 2030-01-02" in text
    assert "| GPT-2 small | 1.50 [0.20] | 1.40 | 1.20 | **0.90** | 95% |" in text
    assert "| 2,000 x 550 | **0.040** [0.20] |  |  |  | 95% |" in text
    assert "| The others, float32, GPT-2 small: update | spectramind_fused | ours," in text
    assert "| NAdam | **1.70** [0.20] | 95% |" in text
    assert "times as fast as the fastest other: at least 1 | 0.80 (torch, fused) | missed |" in text
    assert "part of a copy's bandwidth: at least 0.9 | 0.95 | met |" in text
    assert "Phases that did not pass: time timed out." in text
    assert "Not timed, for time ran out: llama8b bfloat16 step." in text
    assert table.PLAYED not in text
    assert "1.50 ms per step; the fastest other, torch, fused, 1.20 ms" in table.line(
        table.read(measured)
    )


def test_it_takes_the_projections_place_and_a_line_of_the_readme(measured, tmp_path, monkeypatch):
    for name in ("README", "PAGE"):
        page = tmp_path / f"{name}.md"
        page.write_text(getattr(readme, name).read_text())
        monkeypatch.setattr(readme, name, page)
    monkeypatch.setattr(readme, "GPUS", tmp_path / "gpus")
    monkeypatch.setattr(readme, "draw", lambda *_: None)
    assert readme.main(["--gpu", str(measured)]) == 0
    page, front = (tmp_path / f"{name}.md" for name in ("PAGE", "README"))
    assert "GPU of a test" in page.read_text()
    assert "projected ms" not in page.read_text()
    assert front.read_text().count("GPU of a test") == 1
    kept = tmp_path / "gpus" / "gpu-of-a-test.json"
    assert kept.read_text() == measured.read_text()


def test_what_is_no_result_is_refused_in_a_sentence(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert readme.main(["--gpu", str(path)]) == 2
    assert readme.main(["--to", str(path)]) == 2
    assert "holds no times: give a result of" in capsys.readouterr().err
