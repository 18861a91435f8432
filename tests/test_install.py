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


def copied(folder):
    """A copy of the tracked tree."""
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    return source


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
    wheel = built_wheel(tmp_path)
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
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
    assert not any(name.startswith(("tests/", "configs/")) for name in names)

    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    for words in (["optimizer.fused=true"], ["experiment=optimizer_sweeps/policies"]):
        run = subprocess.run(
            [sys.executable, "-m", "spectramind_fused", "train", "data=synthetic",
             "training.epochs=1", *words],
            cwd=empty, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "this run" in run.stdout
    assert "leaderboard" in run.stdout


def test_without_compilers_the_install_succeeds_and_eager_serves(tmp_path):
    broken = tmp_path / "bin" / "nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho starting\necho nvcc fatal: no licence >&2\nexit 1\n")
    broken.chmod(0o755)
    path = f"{broken.parent}{os.pathsep}{os.environ['PATH']}"
    wheel = built_wheel(tmp_path, CC="absent-cc", CXX="absent-c++", PATH=path)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not list(site.rglob("_c*.so"))
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
    assert {"setup.py", "cuda_build.py", "configs/train.yaml", *tracked} <= names
