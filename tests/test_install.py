"""The package: what a wheel holds, and that no compiler means eager, not a failed install."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cuda_build

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


# What work leaves in a clone, and nobody wants to install.
LITTER = (
    "spectramind_fused/kernels/_cpu.so", "spectramind_fused/__pycache__/version.cpython-311.pyc",
    "configs/__pycache__/choices.cpython-311.pyc", "tests/__pycache__/place.cpython-311.pyc",
)  # fmt: skip


def copied(folder):
    """A copy of the tracked tree, and litter."""
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    for name in LITTER:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("old")
    return source


def names_in(wheel):
    """Its files, none of them litter; the package alone, for every Python 3 of one platform."""
    name, version, *tag = wheel.stem.split("-")
    assert tag[:2] == ["py3", "none"]
    assert tag[2] != "any"
    held = zipfile.ZipFile(wheel)
    says = held.read(f"{name}-{version}.dist-info/WHEEL").decode().splitlines()
    assert {"Root-Is-Purelib: false", f"Tag: {'-'.join(tag)}"} <= set(says)
    names = held.namelist()
    assert {path.partition("/")[0] for path in names} == {name, f"{name}-{version}.dist-info"}
    assert not [path for path in names if "__pycache__" in path or path.endswith(".pyc")]
    return names


def built_wheel(folder, **environment):
    """Builds as a user's pip does, without the network."""
    source = copied(folder)
    run = subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.full  # nvcc compiles the CUDA kernels once more
def test_a_wheel_holds_kernels_and_configs_and_serves_every_python(tmp_path):
    wheel = built_wheel(tmp_path, TORCH_CUDA_ARCH_LIST="9.0")
    names = names_in(wheel)
    for name in (
        "spectramind_fused/kernels/_cpu.so",
        *(["spectramind_fused/kernels/_cuda.so"] if cuda_build.find_nvcc() else []),
        "spectramind_fused/configs/train.yaml",
        "spectramind_fused/configs/optimizer/sgd.yaml",
        "spectramind_fused/configs/base/sgd.yaml",
        "spectramind_fused/configs/policy/best-val.yaml",
        "spectramind_fused/configs/experiment/optimizer_sweeps/adamw.yaml",
        "spectramind_fused/py.typed",
    ):
        assert name in names

    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()

    def run_there(*words):
        run = subprocess.run(
            [sys.executable, *words], cwd=empty, env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run

    assert str(site) in run_there(ROOT / "tests" / "smoke.py").stdout
    for words in (["optimizer.fused=true"], ["experiment=optimizer_sweeps/policies"]):
        train = ["-m", "spectramind_fused", "train", "data=synthetic", "training.epochs=1"]
        run = run_there(*train, *words)
        assert "this run" in run.stdout
    assert "leaderboard" in run.stdout


def test_without_compilers_the_install_succeeds_and_eager_serves(tmp_path):
    broken = tmp_path / "bin" / "nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho starting\necho nvcc fatal: no licence >&2\nexit 1\n")
    broken.chmod(0o755)
    path = f"{broken.parent}{os.pathsep}{os.environ['PATH']}"
    wheel = built_wheel(tmp_path, CC="absent-cc", CXX="absent-c++", PATH=path)
    assert not [name for name in names_in(wheel) if name.endswith(".so")]
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import spectramind_fused as s, torch; p = torch.ones(3, requires_grad=True);"
        "p.grad = torch.ones(3); o = s.FusedAdamW([p]); o.step(); print(s.__file__, o.backends());"
        "from spectramind_fused.cli import doctor; doctor.run([])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert str(site) in run.stdout
    assert "C++ kernels were not built" in run.stdout
    words = " ".join(run.stdout.replace("│", " ").split())  # the table breaks lines
    assert "installed (nvcc failed: nvcc fatal: no licence)" in words


def test_an_sdist_holds_what_a_build_needs(tmp_path):
    source = copied(tmp_path)
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    tracked = {str(p.relative_to(source)) for p in (source / "csrc").rglob("*") if p.is_file()}
    wanted = {"setup.py", "cuda_build.py", "configs/train.yaml", "CHANGELOG.md", "tests/smoke.py"}
    assert {*wanted, *tracked} <= names
    assert not names & set(LITTER)
