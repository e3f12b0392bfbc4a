"""What null tests are made of: signal that ends, no signal at all, and a reference free of noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryosweep.composition import ConfigFaults, make_plan
from cryosweep.diagnostics import NeighbourCurves, neighbours_figure
from cryosweep.fourier import half_plane, spectrum_of_images
from cryosweep.io import read_particles
from cryosweep.simulate import SimulationSettings, simulate

SETTINGS = SimulationSettings(particles=24, box_size=64, pixel_size=5.25, snr=1e9, seed=3)
CPU = torch.device("cpu")


def power(settings: SimulationSettings, folder: Path) -> tuple[torch.Tensor, float]:
    """Mean power of the images in each shell, and the variance of the noise."""
    data = simulate(settings, folder, device=CPU)
    particles = read_particles(data.particles)
    plane = half_plane(64, dtype=torch.float64, device=CPU)
    samples = (
        spectrum_of_images(particles.images(torch.arange(24)).double(), plane).abs().square().mean(dim=0)
    )
    total = torch.zeros(plane.max_shell + 1).double().index_add_(0, plane.shell, samples)
    return total / torch.bincount(plane.shell).clamp_min(1), data.noise_variance


def test_signal_ends_at_its_low_pass_and_is_untouched_before(tmp_path: Path) -> None:
    whole, _ = power(SETTINGS, tmp_path / "whole")
    ended, _ = power(replace(SETTINGS, signal_lowpass=28.0), tmp_path / "ended")
    shell = round(64 * 5.25 / 28.0)  # 12, with an edge of two shells
    torch.testing.assert_close(ended[1 : shell - 2], whole[1 : shell - 2], rtol=1e-3, atol=0)
    assert float((ended / whole)[shell + 4 :].max()) < 1e-3


def test_noise_alone_is_the_noise_that_the_signal_calls_for(tmp_path: Path) -> None:
    noisy = replace(SETTINGS, snr=0.5)
    _, variance = power(noisy, tmp_path / "with")
    alone, same = power(replace(noisy, signal=False), tmp_path / "alone")
    assert same == variance
    # white noise of variance v per pixel has v n^2 per sample beyond the corner at 50 A
    assert float(alone[20:].mean()) == pytest.approx(variance * 64**2, rel=0.1)


def test_impossible_null_tests_are_refused() -> None:
    with pytest.raises(ValueError, match="signal_lowpass=5"):
        replace(SETTINGS, signal_lowpass=5.0)
    for given, said in (
        (["data.signal_lowpass=5"], "data.signal_lowpass=5"),
        (["consensus=model", "data=relion", "data.star=a.star", "mask_base=consensus"], "consensus=model"),
    ):
        with pytest.raises(ConfigFaults, match=said):
            make_plan(given, multirun=False)


def test_the_figure_of_neighbours_draws_every_curve(tmp_path: Path) -> None:
    frequency = np.arange(25) / (48 * 4.0)
    curve = np.linspace(1.0, 0.0, 25)
    panels = {
        "own": NeighbourCurves(curve, 0.8 * curve, 0.9 * curve, None),
        "scoring": NeighbourCurves(curve, 0.8 * curve, 0.9 * curve, 0.7 * curve),
    }
    figure = neighbours_figure(panels, frequency=frequency, pixel_size=4.0)
    figure.savefig(tmp_path / "neighbours.png")
    assert [len(axes.lines) for axes in figure.axes] == [4, 5]  # with the line at 0.5
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "truth"
