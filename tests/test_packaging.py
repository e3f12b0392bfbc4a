"""The wheel, installed where the checkout is out of reach, runs a job with its own configuration."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_configuration_data_and_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configuration = {f"cryosweep/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(configuration) > 20
    wanted = configuration | {
        "cryosweep/py.typed", "hydra_plugins/cryosweep_sweepers.py",
        "cryosweep/data/ribosome70s_4v5a_ca.csv.gz",
        *(f"cryosweep/study/report.{name}" for name in ("html.j2", "css", "js")),
    }  # fmt: skip
    assert wanted <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_installed_wheel_runs_a_job_with_its_own_configuration(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    # The libraries come from here; a path in a .pth file does not process that folder's own .pth files, so
    # the editable install of the checkout stays invisible.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [
            home / "bin" / "cryosweep", "run", "study=wheel", "data.particles=40", "data.box_size=48",
            "data.pixel_size=7.0", "refinement.initial_lowpass=20", "refinement.max_iterations=1",
            "scoring.band_low=60", "tracking.enabled=false", "hydra.run.dir=out",
        ],
        cwd=elsewhere, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"configuration files: {site}/cryosweep/conf" in done.stderr
    record = json.loads((elsewhere / "out" / "run.json").read_text())
    assert record["status"] == "FINISHED"
    assert "truth/rotation_error_median" in json.loads((elsewhere / "out" / "summary.json").read_text())
