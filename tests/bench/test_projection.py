"""What the pages say of GPUs and of the last measurement is what the commands make of it."""

import subprocess
import sys

import pytest

from benchmarks import projection, readme
from spectramind_fused.bench.report import read_rows
from spectramind_fused.bench.workloads import Workload


@pytest.mark.parametrize(
    ("shapes", "cuda12", "cuda13"),
    [
        ([(10,)] * 36, 1, 1),  # as many tensors as one launch takes
        ([(10,)] * 37, 2, 1),
        ([(10,)] * 253, 8, 2),
        ([(65536 * 320,)], 1, 1),  # as many blocks
        ([(65536 * 320 + 1,)], 2, 1),
        ([(65536 * 2241,)], 8, 2),
        ([(65536 * 200,)] * 2, 2, 1),  # the second goes on in the next launch
    ],
)
def test_torchs_launches(shapes, cuda12, cuda13):
    model = Workload("", shapes)
    for build, launches in (("CUDA 12", cuda12), ("CUDA 13", cuda13)):
        counters = -(-len(shapes) // projection.TORCHS_COUNTERS[build])
        assert projection.torchs_launches(model, build) == launches + counters


def test_times_are_bytes_over_bandwidth_and_gaps():
    first = projection.projected(efficiency=0.5, gap=1000.0)[0]
    moved = 28 * first.model.parameters / (0.5 * 2.039e12)
    assert first.ours == pytest.approx(1e3 * moved + 2)
    assert first.torchs == pytest.approx(1e3 * moved + 2)  # of its build for CUDA 13


def test_the_sizes_of_the_models_are_the_published_ones():
    sizes = [model.parameters for model in projection.MODELS]
    assert sizes == [124_439_808, 1_235_814_400, 8_030_261_248]


def test_the_command_states_what_it_assumed():
    command = [sys.executable, "-m", "benchmarks.projection", "--efficiency", "0.8", "--gap", "5"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    for said in ("Assumed:", "reach 80%", "5 µs for each launch", "projected ms"):
        assert said in run.stdout
    command[4] = "2"
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "give an efficiency above 0 and up to 1" in run.stderr


def test_the_pages_say_what_was_measured():
    rows = read_rows(readme.HERE / "results.csv")
    assert readme.section(rows) in readme.PAGE.read_text(), "python -m benchmarks.readme"
    summary = readme.between_markers(readme.summary(readme.Results.latest(rows)))
    assert summary in readme.README.read_text(), "python -m benchmarks.readme"


def test_aims_are_judged_by_what_was_seen():
    rows = read_rows(readme.HERE / "results.csv")
    judged = readme.aims(readme.Results.latest(rows))
    slower = [
        row._replace(median_ms=100 * row.median_ms, of_memory_limit=row.of_memory_limit / 100)
        if row.contender.startswith("spectramind_fused")
        and not row.contender.endswith((", off", ", the same"))
        else row
        for row in rows
    ]
    assert len(judged) >= 8
    assert not any(met for _, _, met in readme.aims(readme.Results.latest(slower)))
