"""Smaller heads of the simulated ribosome, and the experiment that asks how small they may be."""

import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cryosweep.composition import ConfigFaults, make_plan
from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import half_plane, images_of_spectrum
from cryosweep.geometry import random_rotations, rotation_vector
from cryosweep.io import read_map, read_particles
from cryosweep.job.data import load_data
from cryosweep.progress import make_progress
from cryosweep.projector import make_reference, slices
from cryosweep.simulate import (
    DOMAINS,
    SimulationSettings,
    core_of,
    load_ribosome,
    load_truth,
    noise_power,
    render_domain,
    simulate,
)
from cryosweep.study.store import Store

ROOT = Path(__file__).parents[1]
BOX, PIXEL = 48, 7.0
SMALL = ("data.particles=20", "data.box_size=48", "data.pixel_size=7.0", "refinement.initial_lowpass=20")
CPU = torch.device("cpu")


# ---- a smaller head ----


def test_a_core_is_what_a_plain_loop_takes() -> None:
    head = load_ribosome().domains["head"]
    atoms, residues = head.coordinates.numpy(), head.weights.numpy()
    centre = (residues[:, None] * atoms).sum(axis=0) / residues.sum()
    order = sorted(range(len(atoms)), key=lambda i: float(((atoms[i] - centre) ** 2).sum()))
    larger: set[tuple[float, ...]] = {tuple(row) for row in atoms.tolist()}
    for mass in (279.0, 150.0, 40.0, 20.0):
        taken, total = 0, 0.0
        while total + 111.0 * residues[order[taken]] <= 1000.0 * mass:
            total += 111.0 * residues[order[taken]]
            taken += 1
        core = core_of(head, 1000.0 * mass)
        kept = {tuple(row) for row in core.coordinates.tolist()}
        assert kept == {tuple(atoms[i].tolist()) for i in order[:taken]}
        assert core.mass_da == pytest.approx(total)
        assert 1000.0 * mass - 400.0 < core.mass_da <= 1000.0 * mass
        assert kept < larger
        assert float((core.centre_of_mass - head.centre_of_mass).norm()) < 8.0
        larger = kept


def test_only_the_head_is_smaller() -> None:
    whole, less = load_ribosome(), load_ribosome(40.0)
    for name in DOMAINS:
        same = torch.equal(whole.domains[name].coordinates, less.domains[name].coordinates)
        assert same == (name != "head")
    for name, hinge in whole.hinges.items():
        assert torch.equal(hinge, less.hinges[name])


def test_particles_of_a_smaller_head_come_with_its_truth(tmp_path: Path) -> None:
    heads: dict[float | None, torch.Tensor] = {}
    territories: list[int] = []
    for mass in (None, 80.0):
        folder = tmp_path / str(mass)
        settings = SimulationSettings(particles=4, box_size=BOX, pixel_size=PIXEL, snr=1e3, head_mass=mass)
        simulate(settings, folder, device="cpu")
        truth = load_truth(folder)
        assert truth.domains["head"].shape.weights.sum() * 111.0 == pytest.approx(
            1e3 * (mass or 279.0), rel=0.01
        )
        heads[mass] = read_map(folder / "truth_head.mrc").data.double()
        territories.append(int((truth.labels == 1 + DOMAINS.index("head")).sum()))
        # motion and views are drawn alike whatever the mass
        assert torch.equal(
            truth.domains["head"].poses.rotations,
            load_truth(tmp_path / "None").domains["head"].poses.rotations,
        )
    # a map sums to half the sum of its weights, residues of 111 Da
    assert float(heads[80.0].sum()) == pytest.approx(0.5 * 80e3 / 111.0, rel=0.01)
    assert territories[1] < 0.6 * territories[0]
    summary = json.loads((tmp_path / "80.0" / "simulation.json").read_text(encoding="utf-8"))
    assert summary["domains"]["head"]["mass_da"] == pytest.approx(80e3, abs=400.0)


def test_a_lighter_head_is_another_simulation(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def key(*overrides: str) -> str:
        (config,) = make_plan([*SMALL, *overrides], multirun=False).jobs
        return load_data(config, store, CPU, make_progress(alone=False)).key

    assert key() != key("data.head_mass=40")
    assert key("data.head_mass=40") == key("data.head_mass=40.0")


def test_a_head_heavier_than_the_head_is_refused() -> None:
    with pytest.raises(ConfigFaults, match=r"data\.head_mass=300.*279 kDa"):
        make_plan(["data.head_mass=300"], multirun=False)
    with pytest.raises(ValueError, match=r"head_mass=300.* between 5 and 279"):
        SimulationSettings(particles=4, head_mass=300.0)


# ---- the analysis ----


@pytest.fixture(scope="module")
def analyse() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "small_domains_analyse", ROOT / "experiments" / "small_domains" / "analyse.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def small_config(**changes: object) -> dict[str, object]:
    """The written configuration of one job of the sweep, in a small box."""
    overrides = [f"{key}={value}" for key, value in changes.items()]
    (job, *_) = make_plan(
        ["experiment=small_domains", *SMALL, "data.head_mass=80", "data.snr=0.1", *overrides], multirun=False
    ).jobs
    config = json.loads(json.dumps(asdict(job), default=str))
    assert isinstance(config, dict)
    return config


def fabricate(
    folder: Path, config: Mapping[str, object], turns: torch.Tensor, *, error: float, sd: float
) -> None:
    """A run folder of particles that moved by `turns` (n, 3) rad, and its summary."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    columns = {f"turn_{axis}": np.degrees(turns[:, k].numpy()) for k, axis in enumerate("xyz")}
    pd.DataFrame(columns).to_csv(folder / "poses.csv", index=False)
    codes = [{"code": "R13", "level": "warning"}] if sd > 3.0 else []
    findings = [*codes, {"code": "R14", "level": "info"}]
    (folder / "findings.json").write_text(json.dumps(findings), encoding="utf-8")
    summary = {
        "truth/rotation_error_median": error, "start/rotation_error_median": 12.0,
        "truth/shift_error_median": 0.25 * error, "start/shift_error_median": 6.0,
        "truth/resolution_05": 7.0 + 0.5 * error, "start/truth_resolution_05": 15.0,
        "truth/fsc_area": 1.0 - 0.05 * error, "start/truth_fsc_area": 0.3,
        "resolution/own_corrected_0143": 8.0 + 0.3 * error, "pose/rotation_sd_median": sd,
        "pose/rotation_change_median": math.degrees(float(turns.norm(dim=1).median())),
        "score/held_out_likelihood": 5.0, "cpu_seconds": 10.0,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three masses, two splits each: 150 kDa agrees and is right, 40 kDa is sure, agrees and is wrong."""
    folder = tmp_path_factory.mktemp("sweep")
    generator = torch.Generator().manual_seed(0)
    for mass, error, noise in ((150, 2.0, 0.01), (80, 8.0, 0.3), (40, 8.0, 0.01)):
        moved = 0.2 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
        for split in (0, 1):
            turns = moved + noise * torch.randn(40, 3, generator=generator, dtype=torch.float64)
            config = small_config(**{"data.head_mass": mass, "seed": split})
            sd = 4.0 if mass == 80 else 1.5
            # where they agree in spite of their errors, the half maps are made to as well
            fabricate(folder / f"{mass}_{split}", config, turns, error=error, sd=sd)
            if mass == 40:
                path = folder / f"{mass}_{split}" / "summary.json"
                summary = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps(summary | {"resolution/own_corrected_0143": 9.0}))
    return folder


def test_runs_are_judged_with_the_truth_and_without(analyse: ModuleType, sweep: Path) -> None:
    table = analyse.table_of(analyse.read_runs([sweep]))
    said = {mass: (set(rows["outcome"]), set(rows["taken"])) for mass, rows in table.groupby("mass")}
    assert said == {150: ({"aligned"}, {True}), 80: ({"placed"}, {False}), 40: ({"placed"}, {True})}
    assert analyse.judged(table, "taken") == {"right": 4, "false": 2, "missed": 0, "of": 6}
    assert analyse.judged(table, "R13") == {"right": 4, "false": 2, "missed": 0, "of": 6}
    assert (
        table.loc[table["mass"] == 80, ["replicates", "precision", "half_maps", "R13"]].to_numpy().sum() == 0
    )
    # sigma 7 in an extent of 20: 1 / (1/49 + 5/400)
    assert table["unmoved_sd"].to_numpy() == pytest.approx((1 / 49 + 5 / 400) ** -0.5)


def test_a_common_turn_is_no_disagreement(analyse: ModuleType) -> None:
    generator = torch.Generator().manual_seed(2)
    first = random_rotations(50, generator, dtype=torch.float64)
    common = torch.matrix_exp(
        torch.tensor([[0.0, -0.2, 0.1], [0.2, 0.0, 0.0], [-0.1, 0.0, 0.0]], dtype=torch.float64)
    )
    turns = [rotation_vector(each) for each in (first, first @ common)]
    assert analyse.disagreement(*turns) == pytest.approx(0.0, abs=1e-5)
    # half of the particles 0.1 rad one way about z, half the other: no common turn takes that out
    angle = 0.1 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(25)
    off = first @ torch.matrix_exp(angle[:, None, None] * torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 0]]))
    assert analyse.disagreement(turns[0], rotation_vector(off)) == pytest.approx(math.degrees(0.1), rel=1e-3)


def test_effects_are_paired(analyse: ModuleType) -> None:
    rows = [
        {
            "mass": 80, "snr": 0.1, "noise": noise, "split": 0, "prior": prior, "extent": 20.0,
            "padding": padding, "subtraction": "domain", "regularisation": "wiener",
            "rotation_error": 5.0 + noise + 3.0 * (padding == 32) - (prior == "prior") * (1 + noise),
        }
        for noise in (0, 1) for prior in ("none", "prior") for padding in (16, 32)
    ]  # fmt: skip
    other, changes = analyse.effects(pd.DataFrame(rows), "prior", "rotation_error", base="none")
    assert other == "prior"
    assert sorted(changes.tolist()) == [-2.0, -2.0, -1.0, -1.0]
    with pytest.raises(ValueError, match=r"extent has levels \[20.0\]"):
        analyse.effects(pd.DataFrame(rows), "extent", "rotation_error", base=20.0)


def test_energy_is_that_of_whitened_images(analyse: ModuleType, tmp_path: Path) -> None:
    """Half the sum of squares of the head's images, each frequency over the noise in it, in float64."""
    config = small_config()
    found = analyse.information(config, particles=6)
    settings = SimulationSettings(
        particles=6, box_size=BOX, pixel_size=PIXEL, snr=1.0, seed=7, head_mass=80.0
    )
    noise = simulate(settings, tmp_path, device="cpu").noise_variance
    optics, head = read_particles(tmp_path / "particles.star").optics, load_ribosome(80.0).domains["head"]
    plane = half_plane(BOX, dtype=torch.float64, device="cpu")
    volume = render_domain(
        head.coordinates, head.weights, box_size=BOX, pixel_size=PIXEL, centre=head.centre_of_mass
    )
    transfer = contrast_transfer(optics, plane.k / (BOX * PIXEL))
    rotations = load_truth(tmp_path).domains["head"].poses.rotations
    images = images_of_spectrum(slices(make_reference(volume), rotations, plane) * transfer, plane)
    spectrum = noise_power(BOX, PIXEL) * BOX**2 * noise
    doubled = torch.full((BOX // 2 + 1,), 2.0, dtype=torch.float64)
    doubled[[0, -1]] = 1.0
    energy = 0.5 * (torch.fft.rfft2(images).abs().square() / spectrum * doubled).sum(dim=(1, 2))
    torch.testing.assert_close(found.energy.double(), energy, rtol=2e-3, atol=0.0)


def test_information_grows_with_the_snr(analyse: ModuleType) -> None:
    found = analyse.information(small_config(), particles=6)
    weak, strong = found.at(1e-6), found.at(100.0)
    # nothing is told: the posterior is as wide as prior and extents leave it, and there is one pose
    assert weak["ln_n"] == pytest.approx(0.0, abs=1e-2)
    assert weak["least_sd"] == pytest.approx(analyse.unmoved_sd(small_config()), rel=1e-3)
    # all is told: the prior no longer matters, and errors are as 1 / sqrt(SNR)
    assert strong["least_sd"] == pytest.approx(strong["crlb_sd"], rel=1e-2)
    assert found.at(400.0)["least_error"] == pytest.approx(0.5 * strong["least_error"], rel=2e-2)
    enough = found.at(found.enough())
    assert enough["energy"] == pytest.approx(4.0 * enough["ln_n"], rel=1e-3)


def test_the_analysis_draws_and_prints(
    analyse: ModuleType, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(analyse, "BOUND_PARTICLES", 4)
    figure, table = tmp_path / "frontier.png", tmp_path / "runs.csv"
    analyse.main([str(sweep), "--figure", str(figure), "--table", str(table)])
    said = capsys.readouterr().out
    assert "| 150 | 0.1 |" in said
    assert "2 aligned | 2 of 2" in said
    assert "| taken | 4 | 2 | 0 | 6 |" in said
    assert figure.stat().st_size > 5000
    assert len(pd.read_csv(table)) == 6
    with pytest.raises(ValueError, match="no finished runs"):
        analyse.read_runs([tmp_path])
