"""Masks and FSC curves against the programs of RELION 3.1.3, on boxes of 64."""

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from torch import Tensor

from cryosweep.fourier import gaussian_filter
from cryosweep.mask import soft_edge, soft_mask, spherical_mask
from cryosweep.resolution import corrected_fsc, five_curves, relion_resolution

pytestmark = pytest.mark.relion

BOX_SIZE = 64
PIXEL_SIZE = 3.0
COLUMNS = {
    "none": "rlnFourierShellCorrelationUnmaskedMaps",
    "tight": "rlnFourierShellCorrelationMaskedMaps",
    "randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


def write(path: Path, volume: Tensor) -> None:
    with mrcfile.new(path) as file:
        file.set_data(volume.numpy().astype(np.float32))
        file.voxel_size = PIXEL_SIZE


def say(line: str) -> None:
    """The figure beside its test in the log (`pytest -rA`)."""
    print(line)  # noqa: T201


def three_lobes() -> Tensor:
    """Density of three unlike soft lobes off the centre, peak 1."""
    return (
        spherical_mask(BOX_SIZE, outer_px=17, inner_px=9, centre_px=(5, -3, 2))
        + 0.8 * spherical_mask(BOX_SIZE, outer_px=12, inner_px=3, centre_px=(-11, 4, -5))
        + 0.6 * spherical_mask(BOX_SIZE, outer_px=9, inner_px=2, centre_px=(3, 14, 10))
    ).clamp_max(1.0)


@pytest.mark.parametrize(
    ("dilation", "padding"), [(0, 0), (1, 0), (1.5, 0), (0, 3), (3, 5), (2.5, 6), (4, 8.3)]
)
def test_soft_mask_is_that_of_relion_mask_create(
    dilation: float,
    padding: float,
    relion: Callable[..., str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    base = three_lobes()
    write(tmp_path / "base.mrc", base)
    # 0.21 is the value of no voxel: RELION puts voxels equal to the threshold inside, we put them outside
    assert not bool((base == 0.21).any())
    relion(
        "relion_mask_create", "--i", "base.mrc", "--o", "mask.mrc", "--angpix", PIXEL_SIZE,
        "--ini_threshold", 0.21, "--extend_inimask", dilation, "--width_soft_edge", padding,
    )  # fmt: skip
    theirs = torch.from_numpy(np.array(mrcfile.read(tmp_path / "mask.mrc")))
    ours = soft_mask(base, threshold=0.21, dilation_radius_px=dilation, soft_padding_width_px=padding)
    worst = float((ours - theirs).abs().max())
    record_property("worst_voxel_difference", worst)
    say(f"mask, dilation {dilation} px, padding {padding} px: worst voxel difference {worst:.1e}")
    assert 0.02 < float(theirs.mean()) < 0.5
    assert worst < 1e-6  # worst seen 6e-8, one rounding step; a distance from the wrong set errs by 0.1


class Postprocess:
    """Halves of a known object, their mask, and what `relion_postprocess` says of them."""

    def __init__(self, relion: Callable[..., str], folder: Path) -> None:
        self._relion, self._folder = relion, folder
        generator = torch.Generator().manual_seed(7)
        density = three_lobes()
        texture = 1.0 + 4.0 * torch.randn(density.shape, generator=generator)
        signal = gaussian_filter(texture * density, sigma=PIXEL_SIZE, pixel_size=PIXEL_SIZE)
        signal = signal / signal[density > 0.3].std()
        self.half_a, self.half_b = (
            signal + torch.randn(density.shape, generator=generator) for _ in range(2)
        )
        self.mask = soft_edge(density > 0.21, 4.0)
        for name in ("half_a", "half_b", "mask"):
            write(folder / f"{name}.mrc", getattr(self, name))

    def run(self, seed: int) -> tuple[dict[str, Tensor], dict[str, object]]:
        # "./": without ghostscript an output name that has no folder makes the program fail
        self._relion(
            "relion_postprocess", "--i", "half_a.mrc", "--i2", "half_b.mrc", "--mask", "mask.mrc",
            "--angpix", PIXEL_SIZE, "--o", f"./post{seed}", "--random_seed", seed,
        )  # fmt: skip
        blocks = starfile.read(self._folder / f"post{seed}.star", always_dict=True)
        table = blocks["fsc"]
        curves = {
            name: torch.from_numpy(table[column].to_numpy(dtype=np.float64, copy=True))
            for name, column in COLUMNS.items()
        }
        return curves, dict(blocks["general"])


def test_curves_are_those_of_relion_postprocess(
    relion: Callable[..., str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = Postprocess(relion, tmp_path)
    runs = [case.run(seed) for seed in range(1, 41)]
    theirs, general = runs[0]
    generator = torch.Generator().manual_seed(11)
    draws = [
        five_curves(
            case.half_a, case.half_b, case.mask, pixel_size=PIXEL_SIZE, generator=generator, randomisations=1
        )
        for _ in range(60)
    ]
    ours = draws[0]

    # what does not depend on random numbers
    assert ours.randomised_from == round(BOX_SIZE * PIXEL_SIZE / float(str(general["rlnRandomiseFrom"])))
    assert 4 <= ours.randomised_from <= 12
    for name, limit in (("none", 2e-5), ("tight", 1e-5)):  # worst seen 5e-6 and 5e-7: the file's six decimals
        worst = float((getattr(ours, name) - theirs[name])[1:].abs().max())
        record_property(f"worst_difference_{name}", worst)
        say(f"FSC {name}: worst difference to RELION {worst:.1e}")
        assert worst < limit
    correction = corrected_fsc(theirs["tight"], theirs["randomised"], randomised_from=ours.randomised_from)
    assert float((correction - theirs["corrected"])[1:].abs().max()) < 1e-5
    resolution = relion_resolution(correction, box_size=BOX_SIZE, pixel_size=PIXEL_SIZE)
    assert resolution == pytest.approx(float(str(general["rlnFinalResolution"])), abs=1e-5)

    # What does: means over 40 of RELION's seeds and 60 of our draws, in shells where those means are known
    # well enough to tell. Seen: randomised 0.008 in 21 of 32 shells (0.023 in all, where the standard error
    # is 0.011), corrected 0.006 in all 32.
    for name in ("randomised", "corrected"):
        their_draws = torch.stack([curves[name] for curves, _ in runs])
        our_draws = torch.stack([getattr(curves, name) for curves in draws])
        error = torch.sqrt(their_draws.var(dim=0) / len(their_draws) + our_draws.var(dim=0) / len(our_draws))
        difference = (our_draws.mean(dim=0) - their_draws.mean(dim=0)).abs()
        settled = error < 0.007
        settled[0] = False
        worst, everywhere = float(difference[settled].max()), float(difference[1:].max())
        count, of = int(settled.sum()), settled.numel() - 1
        record_property(f"worst_difference_{name}", worst)
        say(
            f"FSC {name}: worst difference of the means {worst:.3f} in the {count} of {of} shells where its "
            f"standard error is below 0.007, {everywhere:.3f} in all"
        )
        assert count > of / 2
        assert worst < 0.02
        # elsewhere no more than chance allows: worst seen 2.1 standard errors
        assert bool((difference[1:] < 4.5 * error[1:] + 0.001).all())
