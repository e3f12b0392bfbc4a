"""Local resolution against maps made to be resolved to a known place, and against noise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryosweep.fourier import centred_range, crop_centre, frequency_radius, low_pass, multiply_spectrum
from cryosweep.local_resolution import (
    filter_locally,
    local_resolution,
    noise_fsc_sd,
    soft_window,
    windowed_fsc,
)
from cryosweep.mask import soft_edge, spherical_mask
from cryosweep.resolution import crossing, effective_samples, fsc, fsc_of_spectra, fsc_sd

BOX, PIXEL, WIDTH = 64, 2.5, 50.0
SHELL = 1.0 / 80.0  # 1/Å: a shell of the window's cube of 32 px


def noise(generator: torch.Generator) -> Tensor:
    return torch.randn((BOX,) * 3, generator=generator)


def frequency() -> Tensor:
    return frequency_radius(BOX, dims=3, dtype=torch.float32, device="cpu") / (BOX * PIXEL)


def crosses_at(resolution: float, generator: torch.Generator, *, ratio: float = 8.0) -> Tensor:
    """Random density whose SNR against noise of variance 1 falls, as a Gaussian, from `ratio` to 1.

    It is 1 at `resolution`: with FSC = SNR / (1 + SNR), where the FSC of two such halves is 0.5.
    """
    amplitude = ratio ** (0.5 - 0.5 * (frequency() * resolution) ** 2)
    return multiply_spectrum(noise(generator), amplitude)


def sharp_end(resolution: float, generator: torch.Generator) -> Tensor:
    """Random density of SNR 20 that ends at once at `resolution`."""
    return multiply_spectrum(noise(generator), 20**0.5 * (frequency() <= 1.0 / resolution).float())


def two_parts(make: Callable[..., Tensor], fine: float, coarse: float, generator: torch.Generator) -> Tensor:
    """`fine` below the middle plane of z, `coarse` above it."""
    below = (centred_range(BOX, dtype=torch.float32, device="cpu") < 0).float()[:, None, None]
    return below * make(fine, generator) + (1.0 - below) * make(coarse, generator)


BELOW = (slice(8, 18), slice(12, 52), slice(12, 52))  # where no window reaches across the middle plane
ABOVE = (slice(46, 56), slice(12, 52), slice(12, 52))
ONES = torch.ones((BOX,) * 3)


def test_two_parts_read_their_own_resolution(
    generator: torch.Generator, record_property: Callable[[str, object], None]
) -> None:
    fine, coarse = 8.0, 13.0
    signal = two_parts(crosses_at, fine, coarse, generator)
    found = local_resolution(
        signal + noise(generator), signal + noise(generator), ONES, pixel_size=PIXEL, window_width=WIDTH
    )
    below, above = (float(found.resolution[part].median()) for part in (BELOW, ABOVE))
    record_property("reads_8", below)
    record_property("reads_13", above)
    assert abs(1 / below - 1 / fine) < 0.4 * SHELL
    assert abs(1 / above - 1 / coarse) < 0.4 * SHELL
    # the one curve of the whole box can say neither
    whole = crossing(
        fsc(signal + noise(generator), signal + noise(generator)), 0.5, box_size=BOX, pixel_size=PIXEL
    )
    assert below + 0.5 < whole < above - 0.5


def test_where_all_is_alike_windows_read_what_the_box_does(generator: torch.Generator) -> None:
    signal = crosses_at(9.0, generator)
    a, b = signal + noise(generator), signal + noise(generator)
    found = local_resolution(a, b, ONES, pixel_size=PIXEL, window_width=WIDTH, step=15.0)
    whole = crossing(fsc(a, b), 0.5, box_size=BOX, pixel_size=PIXEL)
    assert float(found.resolution.median()) == pytest.approx(whole, rel=0.04)


def test_a_signal_that_ends_at_once_reads_a_shell_of_the_window_too_fine(
    generator: torch.Generator, record_property: Callable[[str, object], None]
) -> None:
    fine, coarse = 8.0, 14.0
    signal = two_parts(sharp_end, fine, coarse, generator)
    found = local_resolution(
        signal + noise(generator), signal + noise(generator), ONES, pixel_size=PIXEL, window_width=WIDTH
    )
    for part, truth in ((BELOW, fine), (ABOVE, coarse)):
        read = float(found.resolution[part].median())
        record_property(f"reads_{truth:g}", read)
        assert 0.0 < 1 / read - 1 / truth < 1.5 * SHELL


def test_noise_reads_the_floor(
    generator: torch.Generator, record_property: Callable[[str, object], None]
) -> None:
    """At 0.5 not one voxel in a hundred is told to be better than the floor."""
    better: list[float] = []
    for width in (40.0, 50.0, 60.0):
        found = local_resolution(
            noise(generator), noise(generator), ONES, pixel_size=PIXEL, window_width=width, step=10.0
        )
        assert found.floor == width / 2
        assert float(found.resolution.max()) <= found.floor * (1 + 1e-6)
        better.append(float((found.resolution < 0.999 * found.floor).double().mean()))
    record_property("share_better_than_floor", max(better))
    assert max(better) < 0.01


def test_the_scatter_of_noise_is_told(
    generator: torch.Generator, record_property: Callable[[str, object], None]
) -> None:
    window = soft_window(WIDTH, pixel_size=PIXEL)
    cubes = torch.randn(2, 600, *window.shape, generator=generator) * window
    curves = fsc_of_spectra(*torch.fft.rfftn(cubes, dim=(2, 3, 4)))
    told = noise_fsc_sd(window)
    ratio = (curves.std(dim=0) / told)[1:]
    record_property("seen_over_told_low", float(ratio.min()))
    record_property("seen_over_told_high", float(ratio.max()))
    assert bool(((ratio > 0.85) & (ratio < 1.15)).all())  # the spread of 600 is known to 3 %
    zeros = torch.zeros_like(ONES)
    found = local_resolution(zeros, zeros, ONES, pixel_size=PIXEL, window_width=WIDTH, step=40.0)
    assert found.noise_at(8.0) == pytest.approx(float(told[10]))
    # a band is the rule of `effective_samples`, whose shells are taken as independent
    band = (
        curves[:, 6:15].mean(dim=1).std()
        / fsc_sd(torch.zeros(9), effective_samples(window)[6:15]).square().sum().sqrt()
        * 9
    )
    assert 0.85 < float(band) < 1.15


def test_identical_halves_read_nyquist(generator: torch.Generator) -> None:
    volume = noise(generator)
    found = local_resolution(volume, volume, ONES, pixel_size=PIXEL, window_width=WIDTH)
    assert found.resolution == pytest.approx(2 * PIXEL)


def test_a_window_is_the_crop_it_says(generator: torch.Generator) -> None:
    a, b = noise(generator), noise(generator) + 0.0
    b = b + a
    window = soft_window(30.0, pixel_size=PIXEL)
    size = window.shape[-1]
    (curve,) = windowed_fsc(a, b, torch.tensor([[32, 32, 32]]), window)
    cubes = [crop_centre(each, size, dims=3) * window for each in (a, b)]
    assert curve == pytest.approx(fsc(*cubes), abs=1e-6)
    # off the centre, and over the edge of the box, where there are zeros
    moved = [torch.nn.functional.pad(each, (size,) * 6) for each in (a, b)]
    (curve,) = windowed_fsc(a, b, torch.tensor([[3, 60, 20]]), window)
    corner = [slice(at + size - size // 2, at + size - size // 2 + size) for at in (3, 60, 20)]
    cubes = [each[corner[0], corner[1], corner[2]] * window for each in moved]
    assert curve == pytest.approx(fsc(*cubes), abs=1e-6)


def test_the_window_has_the_width_it_is_named_by() -> None:
    window = soft_window(WIDTH, pixel_size=PIXEL)
    size = window.shape[-1]
    assert size == 32
    ray = window[size // 2, size // 2, size // 2 :]
    assert [float(ray[px]) for px in (0, 5, 10, 15)] == pytest.approx([1.0, 1.0, 0.5, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="too few for an FSC; give 20 Å or more"):
        soft_window(19.0, pixel_size=PIXEL)


def test_what_lies_beyond_the_mask_does_not_count(generator: torch.Generator) -> None:
    """A neighbour that the halves do not share spoils no reading inside the mask."""
    signal = crosses_at(7.0, generator)
    mask = soft_edge(spherical_mask(BOX, outer_px=12, inner_px=12) > 0.5, 6.0)
    outside = (spherical_mask(BOX, outer_px=18, inner_px=18) < 0.5).float()
    a, b = (signal + noise(generator) + 15.0 * outside * noise(generator) for _ in range(2))
    core = spherical_mask(BOX, outer_px=11, inner_px=11) > 0.5
    aware, blind = (
        local_resolution(a, b, each, pixel_size=PIXEL, window_width=WIDTH).resolution[core].median()
        for each in (mask, ONES)
    )
    assert abs(float(aware) - 7.0) < 1.0
    assert float(blind) > 10.0


def test_outside_the_mask_there_is_the_floor(generator: torch.Generator) -> None:
    signal = crosses_at(7.0, generator)
    mask = soft_edge(spherical_mask(BOX, outer_px=8, inner_px=8) > 0.5, 4.0)
    found = local_resolution(
        signal + noise(generator), signal + noise(generator), mask, pixel_size=PIXEL, window_width=40.0
    )
    far = spherical_mask(BOX, outer_px=24, inner_px=24) < 0.5
    assert found.resolution[far] == pytest.approx(found.floor)
    assert float(found.resolution[mask > 0.5].median()) < 9.0


def test_windows_further_apart_read_the_same(generator: torch.Generator) -> None:
    signal = two_parts(crosses_at, 8.0, 13.0, generator)
    a, b = signal + noise(generator), signal + noise(generator)
    dense, sparse = (
        local_resolution(a, b, ONES, pixel_size=PIXEL, window_width=WIDTH, step=step) for step in (7.5, 15.0)
    )
    assert dense.windows > 6 * sparse.windows
    centres = (slice(2, None, 6),) * 3  # of the sparse grid: the box centre is one
    assert dense.resolution[centres] == pytest.approx(sparse.resolution[centres], rel=1e-5)
    assert float((dense.resolution / sparse.resolution).log().abs().median()) < 0.05


@pytest.mark.parametrize("resolution", [7.0, 12.0])
def test_filtering_by_one_resolution_is_a_low_pass(resolution: float, generator: torch.Generator) -> None:
    volume = noise(generator)
    found = filter_locally(volume, torch.full_like(volume, resolution), pixel_size=PIXEL)
    expected = low_pass(volume, resolution=resolution, pixel_size=PIXEL)
    assert float((found - expected).abs().max()) < 1e-4


def test_each_part_is_filtered_as_its_own(generator: torch.Generator) -> None:
    volume = noise(generator)
    resolution = torch.full_like(volume, 6.0)
    resolution[32:] = 15.0
    found = filter_locally(volume, resolution, pixel_size=PIXEL)
    for part, cut in ((slice(0, 32), 6.0), (slice(32, 64), 15.0)):
        expected = low_pass(volume, resolution=cut, pixel_size=PIXEL)
        assert float((found - expected)[part].abs().max()) < 1e-4


def test_between_two_levels_a_map_is_blended(generator: torch.Generator) -> None:
    """Against a filter made for each voxel: all of a ramp of resolutions within 3 % of the map's spread."""
    volume = noise(generator)
    ramp = torch.linspace(1 / 16.0, 1 / 6.0, BOX)
    found = filter_locally(volume, (1.0 / ramp)[:, None, None].expand(volume.shape), pixel_size=PIXEL)
    for z in range(0, BOX, 9):
        expected = low_pass(volume, resolution=float(1.0 / ramp[z]), pixel_size=PIXEL)[z]
        assert float((found[z] - expected).std()) < 0.03 * float(volume.std())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros((BOX,) * 3)}, "no window lies in the mask"),
        ({"mask": torch.ones((BOX - 2,) * 3)}, "must share one box"),
        ({"threshold": 1.0}, "must lie between 0 and 1"),
        ({"window_width": 15.0}, "too few for an FSC"),
    ],
)
def test_what_cannot_be_used_is_refused(
    change: dict[str, Tensor | float], message: str, generator: torch.Generator
) -> None:
    a, b = noise(generator), noise(generator)
    arguments = {"mask": ONES, "window_width": WIDTH, "threshold": 0.5} | change
    with pytest.raises(ValueError, match=message):
        local_resolution(a, b, pixel_size=PIXEL, **arguments)  # pyright: ignore[reportArgumentType]
