"""The state of a refinement in a file, and a consensus that goes on from it."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cryosweep import app
from cryosweep.checkpoint import CHECKPOINT, Checkpoint
from cryosweep.consensus import DynamicMask, refine_consensus
from cryosweep.io.maps import read_map
from cryosweep.io.particles import read_particles
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, RefinementState
from cryosweep.simulate import SimulationSettings, simulate
from tests.test_refined import same

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
FLAGS = (
    "--initial-lowpass", "40", "--mask-starts", "100", "--mask-cut", "0.3", "20", "40", "--rotation-extent",
    "8", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("particles")
    settings = SimulationSettings(60, box_size=32, pixel_size=10.0, snr=1.0, pose_error_rotation=3.0, seed=2)
    simulate(settings, folder, device=CPU)
    return folder / "particles.star"


def a_state() -> RefinementState:
    return RefinementState(
        2, 7, torch.eye(3).expand(4, 3, 3).clone(), torch.ones(4, 2), torch.zeros(2, 6, 6, 6),
        torch.ones(6, 6, 6), (), None,
    )  # fmt: skip


def test_a_state_comes_back_and_only_to_whom_it_belongs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mine = Checkpoint(tmp_path / CHECKPOINT, "mine", "consensus")
    assert mine.read() is None
    assert not caplog.messages
    mine.write(a_state())
    assert same(mine.read(), a_state())
    assert "consensus: goes on after iteration 2" in caplog.messages
    assert replace(mine, identity="other").read() is None
    assert "consensus: begins anew, checkpoint.pt is of other inputs, settings or code" in caplog.messages
    # a file cut short, and one that holds something else, are said and not used
    whole = mine.path.read_bytes()
    mine.path.write_bytes(whole[:-200])
    assert mine.read() is None
    torch.save({"identity": "mine"}, mine.path)
    assert mine.read() is None
    assert sum("cannot be read" in text for text in caplog.messages) == 2
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    mine.remove()
    mine.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", ["dynamic", "sphere"])
def test_a_consensus_continued_from_any_iteration_ends_alike(simulated: Path, mask: str) -> None:
    particles = read_particles(simulated)
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    settings = RefinementSettings(
        rotation_extent=8.0, shift_extent=8.0, initial_lowpass=40.0, max_iterations=3
    )

    def run(**more: Any) -> Any:
        made = DynamicMask(level=0.3, near=20.0, far=40.0, starts=100.0) if mask == "dynamic" else None
        return refine_consensus(particles, start, mask=made, settings=settings, device=CPU, **more)

    states: list[RefinementState] = []
    whole = run(on_state=states.append)
    assert [state.iteration for state in states] == list(range(1, len(whole.refinement.records)))
    assert states
    for state in states:
        ended = run(resume=state)
        assert same(ended.refinement, whole.refinement)
        assert same(ended.half_maps, whole.half_maps)
        assert torch.equal(ended.mask, whole.mask)
        assert torch.equal(ended.particles.rotations, whole.particles.rotations)
    other = replace(states[0], volumes=states[0].volumes.flip(0))
    assert not same(run(resume=other).refinement, whole.refinement)


class Stopped(Exception):
    """What takes the place of a kill: it comes after the state was written."""


@contextmanager
def stopped_after(monkeypatch: pytest.MonkeyPatch, iteration: int) -> Generator[None]:
    written = Checkpoint.write

    def write(self: Checkpoint, state: RefinementState) -> None:
        written(self, state)
        if state.iteration == iteration:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", write)
        yield


def outcome(folder: Path) -> dict[str, bytes]:
    """What the files hold but for the clock, which stands in headers and in seconds; without figures."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".mrc":
            found[path.name] = read_map(path).data.numpy().tobytes()
        elif path.name == "iterations.csv":
            found[path.name] = pd.read_csv(path).drop(columns="seconds").to_csv().encode()
        elif path.suffix in (".csv", ".star"):
            lines = path.read_bytes().splitlines()
            found[path.name] = b"\n".join(line for line in lines if not line.startswith(b"#"))
    return found


def test_the_command_goes_on_where_it_was_stopped(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def run(name: str, *more: str) -> int:
        return app.main(["consensus", str(simulated), "-o", str(tmp_path / name), *FLAGS, *more])

    assert run("whole") == 0
    assert not list(tmp_path.glob(f"*{CHECKPOINT}"))
    with stopped_after(monkeypatch, 2), pytest.raises(Stopped):
        run("c")
    (kept,) = tmp_path.glob(f"*{CHECKPOINT}")
    assert kept.name == f"c.{CHECKPOINT}"
    capsys.readouterr()
    assert run("c") == 0
    assert f"goes on after iteration 2, which {kept} holds" in capsys.readouterr().out
    assert outcome(tmp_path / "c") == outcome(tmp_path / "whole")
    assert not kept.exists()
    # that of another extent is not taken
    with stopped_after(monkeypatch, 1), pytest.raises(Stopped):
        run("d")
    caplog.clear()
    assert run("d", "--shift-extent", "6") == 0
    assert "begins anew" in caplog.text
    assert outcome(tmp_path / "d") != outcome(tmp_path / "whole")


def killed_once(arguments: list[str], here: Path, pattern: str) -> None:
    """Start cryosweep, kill it with SIGKILL when a new checkpoint is there, and start it again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cryosweep", *arguments]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=here, env=environment, start_new_session=True, **quiet)
    for _ in range(30000):
        if list(here.glob(pattern)) or process.poll() is not None:
            break
        time.sleep(0.005)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(here.glob(pattern))
    assert subprocess.run(command, cwd=here, env=environment, check=False, **quiet).returncode == 0
    assert not list(here.glob(pattern))


@pytest.mark.slow
def test_killed_on_the_way_and_typed_again_it_ends_with_the_same_bits(
    simulated: Path, tmp_path: Path
) -> None:
    arguments = ["consensus", str(simulated), *FLAGS, "--iterations", "6", "-o"]
    assert app.main([*arguments, str(tmp_path / "whole")]) == 0
    killed_once([*arguments, "killed"], tmp_path, f"killed.{CHECKPOINT}")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_the_consensus_of_a_job_goes_on_after_a_kill(simulated: Path, tmp_path: Path) -> None:
    arguments = [
        "run", "data=relion", f"data.star={simulated}", "mask_base=consensus", "consensus=homogeneous",
        "consensus.max_iterations=6", "consensus.initial_lowpass=40", "consensus.mask_starts=100",
        "refinement.initial_lowpass=40", "refinement.max_iterations=1", "scoring.band_low=100",
        "search.audit=0", "compute.device=cpu", "tracking.enabled=false",
    ]  # fmt: skip
    stages = "stages/refined_consensus"
    assert app.main([*arguments, f"output_dir={tmp_path / 'whole'}"]) == 0
    killed_once([*arguments, "output_dir=killed"], tmp_path, f"killed/{stages}/*/{CHECKPOINT}")
    (log,) = [
        text
        for path in tmp_path.glob("killed/*/run_*/cryosweep.log")
        if "goes on after iteration" in (text := path.read_text())
    ]
    assert "consensus: goes on after iteration" in log
    (killed,), (whole,) = (
        list((tmp_path / name / stages).glob("*/poses.npz")) for name in ("killed", "whole")
    )
    with np.load(killed) as one, np.load(whole) as other:
        assert all(np.array_equal(one[name], other[name]) for name in other.files)
    assert outcome(killed.parent) == outcome(whole.parent)
