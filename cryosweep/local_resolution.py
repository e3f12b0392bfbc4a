"""Local resolution: the FSC of two half maps in a soft window that travels through them.

A window of width W is a sphere that is 1 up to W/4 from its centre and falls to 0 at 3W/4 along a raised
cosine, so W is its full width at half maximum; `relion_postprocess --locres --locres_sampling W/2` uses the
same. Each window is transformed in a cube of its own, not in the whole box, whose finer shells only repeat
what the shells of that cube say.

No phases are randomised. What a window this soft carries from one shell into another stays within its own
width in Fourier space, about one shell of its cube: a signal that ends at once, far above the noise, reads
one such shell too fine, and random phases from a shell further down would not tell. One that fades does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryosweep.fourier import (
    even_fft_size,
    low_pass_transfer,
    shell_count,
)
from cryosweep.mask import NEGLIGIBLE, spherical_mask
from cryosweep.resolution import fsc_of_spectra
from cryosweep.rules import Finding, local_window

# Width of the default window over the resolution of the half maps: noise then has an FSC of about 0.1 there.
WIDTH_PER_RESOLUTION = 7.0
# Windows lie this share of their width apart by default. The map is smooth on the scale of the window.
STEP_PER_WIDTH = 0.2
# The coarsest value told, over the width: finer than this, noise scarcely ever has an FSC of 0.5.
FLOOR_PER_WIDTH = 0.5

# Narrower windows hold too few shells for a curve.
MIN_WIDTH_PX = 8

_LEVELS = 16
_CHUNK_VOXELS = 2**21


@dataclass(frozen=True)
class LocalResolution:
    """Resolution at every voxel of a map.

    Attributes:
        resolution: (d, d, d) Å, from Nyquist to `floor`, which means this or worse; `floor` outside the mask.
        floor: Å, the coarsest value told.
        window_width: Å, full width at half maximum.
        step_px: distance of neighbouring windows along each axis.
        windows: how many there were.
        threshold: of the FSC.
        noise: (n_shells,) standard deviation of the FSC of noise in each shell of one window.
        window_length: Å; shell s of a window lies at s / window_length.
    """

    resolution: Tensor
    floor: float
    window_width: float
    step_px: int
    windows: int
    threshold: float
    noise: Tensor
    window_length: float

    def noise_at(self, resolution: float) -> float:
        """Standard deviation of the FSC of noise in one window at `resolution` Å."""
        last = self.noise.numel() - 1
        return float(self.noise[min(max(round(self.window_length / resolution), 1), last)])

    def shares(self, mask: Tensor) -> tuple[float, float, float, float]:
        """Where `mask` exceeds 0.5: 5th, 50th and 95th percentile in Å, and the share of voxels at the floor.

        Raises:
            ValueError: it exceeds 0.5 nowhere.
        """
        inside = self.resolution[mask > 0.5].cpu().numpy()
        if inside.size == 0:
            raise ValueError("the mask exceeds 0.5 nowhere; lower its threshold")
        low, middle, high = (float(value) for value in np.percentile(inside, [5, 50, 95]))
        return low, middle, high, float((inside > 0.999 * self.floor).mean())

    def finding(self, mask: Tensor) -> Finding | None:
        """What is questionable about the width of the window, if anything."""
        middle = self.shares(mask)[1]
        return local_window(
            self.threshold, self.noise_at(middle), window=self.window_width, resolution=middle
        )


def soft_window(width: float, *, pixel_size: float, device: torch.device | str = "cpu") -> Tensor:
    """(s, s, s) window of full width at half maximum `width` (Å) in the smallest cube that FFTs like.

    Raises:
        ValueError: the window is less than 8 px wide, too few for an FSC.
    """
    width_px = width / pixel_size
    if not width_px >= MIN_WIDTH_PX:
        raise ValueError(
            f"a window of {width:g} Å is {width_px:.1f} px wide, too few for an FSC; give "
            f"{MIN_WIDTH_PX * pixel_size:g} Å or more"
        )
    size = even_fft_size(1.5 * width_px + 1)
    return spherical_mask(size, inner_px=0.25 * width_px, outer_px=0.75 * width_px, device=device)


def local_resolution(
    half_a: Tensor,
    half_b: Tensor,
    mask: Tensor,
    *,
    pixel_size: float,
    window_width: float,
    threshold: float = 0.5,
    step: float | None = None,
) -> LocalResolution:
    """Resolution at which the FSC in a window about each voxel first falls below a threshold.

    First from half the width of the window on, which is the coarsest value told: shells before it hold so few
    coefficients that chance alone would end many a curve there.

    Windows are centred on a grid where the mask is not 0, and their frequencies (1/Å) interpolated linearly.
    The half maps are multiplied by the mask first, so that a window at the rim of a domain does not read what
    lies beyond: the neighbour that was not aligned, or was subtracted. A mask of ones changes nothing.

    Args:
        half_a: (d, d, d) unfiltered half map.
        half_b: (d, d, d) unfiltered half map.
        mask: (d, d, d) in [0, 1], with a soft edge.
        pixel_size: Å.
        window_width: Å. A wide window tells few places apart, a narrow one few resolutions: `noise_at` of the
            result says how far the FSC scatters, and 0.143 is of use only where that is below about 0.05.
        threshold: 0.5 or 0.143 as a rule.
        step: Å between windows; 0.2 of their width by default.

    Raises:
        ValueError: shapes differ, the mask is empty, or the window or the step does not fit the box.
    """
    if not half_a.shape == half_b.shape == mask.shape:
        raise ValueError(
            f"maps and mask must share one box: {tuple(half_a.shape)}, {tuple(half_b.shape)} and "
            f"{tuple(mask.shape)} differ"
        )
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold of {threshold:g} must lie between 0 and 1")
    box_size = int(mask.shape[-1])
    if window_width > box_size * pixel_size:
        raise ValueError(
            f"a window of {window_width:g} Å is wider than the box of {box_size * pixel_size:g} Å; give less"
        )
    window = soft_window(window_width, pixel_size=pixel_size, device=mask.device).to(mask.dtype)
    size = int(window.shape[-1])
    step_px = max(1, round((STEP_PER_WIDTH * window_width if step is None else step) / pixel_size))
    # a grid about the box centre that reaches beyond the box on both sides
    reach = math.ceil((box_size // 2 + 1) / step_px)
    axis = torch.arange(-reach, reach + 1, device=mask.device) * step_px + box_size // 2
    inside = (axis >= 0) & (axis < box_size)
    known = torch.zeros((axis.numel(),) * 3, dtype=torch.bool, device=mask.device)
    kept = axis[inside]
    span = torch.nonzero(inside).squeeze(-1)
    first, last = int(span[0]), int(span[-1]) + 1
    known[first:last, first:last, first:last] = mask[kept][:, kept][:, :, kept] > NEGLIGIBLE
    places = torch.nonzero(known)
    if places.shape[0] == 0:
        raise ValueError(
            "no window lies in the mask: it is empty or smaller than the step; give a smaller step"
        )
    floor = FLOOR_PER_WIDTH * window_width
    # coarser shells hold too few coefficients to end a curve
    first_shell = math.floor(size * pixel_size / floor)
    masked = (half_a * mask, half_b * mask)
    found: list[Tensor] = []
    for part in places.split(max(1, _CHUNK_VOXELS // size**3)):
        curves = windowed_fsc(*masked, axis[part], window)
        found.append(_crossings(curves, threshold, first_shell) / (size * pixel_size))
    frequency = torch.zeros(known.shape, dtype=mask.dtype, device=mask.device)
    frequency[known] = torch.cat(found).clamp_min(1.0 / floor).to(mask.dtype)
    begin = int(-axis[0])
    filled = _interpolated(frequency, known, step_px)[(slice(begin, begin + box_size),) * 3]
    return LocalResolution(
        resolution=torch.where(filled > 0, 1.0 / filled.clamp_min(1.0 / floor), floor),
        floor=floor,
        window_width=window_width,
        step_px=step_px,
        windows=places.shape[0],
        threshold=threshold,
        noise=noise_fsc_sd(window),
        window_length=size * pixel_size,
    )


def windowed_fsc(half_a: Tensor, half_b: Tensor, centres: Tensor, window: Tensor) -> Tensor:
    """FSC of two maps in a window about each of some voxels.

    Args:
        half_a: (d, d, d).
        half_b: (d, d, d).
        centres: (n, 3) integer indices z, y, x into the maps; beyond the box there are zeros.
        window: (s, s, s), its centre at voxel `s // 2`.

    Returns:
        (n, n_shells) float64, shells of a box of `s` px.
    """
    size = int(window.shape[-1])
    spectra: list[Tensor] = []
    for half in (half_a, half_b):
        # with half a cube of zeros before it, the cube about a voxel begins at the index of that voxel
        padded = torch.nn.functional.pad(half, (size // 2, size - size // 2) * 3)
        cubes = padded.unfold(0, size, 1).unfold(1, size, 1).unfold(2, size, 1)
        z, y, x = centres.unbind(-1)
        spectra.append(torch.fft.rfftn(cubes[z, y, x] * window, dim=(1, 2, 3)))
    return fsc_of_spectra(spectra[0], spectra[1])


def noise_fsc_sd(window: Tensor) -> Tensor:
    """(n_shells,) float64 standard deviation of the FSC of two independent noises under a window (s, s, s).

    Coefficients k and k' of white noise under a window w correlate as r(k - k'), the transform of `w^2` over
    its sum, so the FSC of a shell of N has the variance `sum |r(k - k')|^2 / N^2` over all pairs in it.
    `resolution.effective_samples` is the same summed over the neighbouring shells too, right for a band and
    too wide for a crossing.
    """
    size = int(window.shape[-1])
    square = window.to(torch.float64).square()
    # the sum over pairs as one over distances, and that as one over the real space of both
    correlation = torch.fft.ifftn((torch.fft.fftn(square) / square.sum()).abs().square()).real
    axis = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64, device=window.device).square()
    shells = (axis[:, None, None] + axis[:, None] + axis).sqrt().round()
    found = torch.ones(shell_count(size), dtype=torch.float64, device=window.device)
    for shell in range(1, found.numel()):
        inside = (shells == shell).to(torch.float64)
        pairs = float((torch.fft.fftn(inside).abs().square() * correlation).sum())
        found[shell] = math.sqrt(pairs) / float(inside.sum())
    return found


def filter_locally(volume: Tensor, resolution: Tensor, *, pixel_size: float) -> Tensor:
    """`volume` low-passed at each voxel at the resolution of that voxel.

    Low-passed copies, at most 16 and evenly spaced in frequency, are blended linearly.

    Args:
        volume: (d, d, d), sharpened as a rule.
        resolution: (d, d, d) Å.
        pixel_size: Å.
    """
    frequency = 1.0 / resolution
    low, high = float(frequency.min()), float(frequency.max())
    box_size = int(volume.shape[-1])
    # levels nearer than a shell would be alike
    count = min(_LEVELS, math.ceil((high - low) * box_size * pixel_size) + 1)
    spacing = (high - low) / max(count - 1, 1)
    place = (frequency - low) / spacing if spacing > 0 else torch.zeros_like(frequency)
    spectrum = torch.fft.rfftn(volume)
    blended = torch.zeros_like(volume)
    for level in range(count):
        cut = low_pass_transfer(
            box_size, resolution=1.0 / (low + level * spacing), pixel_size=pixel_size, dtype=volume.dtype,
            device=volume.device,
        )  # fmt: skip
        share = (1.0 - (place - level).abs()).clamp_min(0.0)
        blended += share * torch.fft.irfftn(spectrum * cut, s=volume.shape)
    return blended


def _crossings(curves: Tensor, threshold: float, first_shell: int) -> Tensor:
    """(n,) shell, interpolated, where each of (n, n_shells) curves falls below, from `first_shell` on.

    One that is below there has its crossing there, one that never falls below in the last shell.
    """
    count = curves.shape[1]
    below = curves[:, first_shell:] < threshold
    shell = torch.where(below.any(dim=1), below.int().argmax(dim=1) + first_shell, count)
    after = shell.clamp(first_shell + 1, count - 1)
    above, under = (curves.gather(1, each[:, None]).squeeze(1) for each in (after - 1, after))
    between = after - 1 + (above - threshold) / (above - under)
    between = torch.where(shell == first_shell, float(first_shell), between)
    return torch.where(shell == count, count - 1.0, between)


def _interpolated(values: Tensor, known: Tensor, step_px: int) -> Tensor:
    """Values of a coarse grid (g, g, g) at every voxel between, linear; 0 where no corner is known."""

    def spread(grid: Tensor) -> Tensor:
        fine = (values.shape[0] - 1) * step_px + 1
        return torch.nn.functional.interpolate(
            grid[None, None], size=(fine,) * 3, mode="trilinear", align_corners=True
        )[0, 0]

    share = spread(known.to(values.dtype))
    return torch.where(share > 1e-4, spread(values) / share.clamp_min(1e-4), 0.0)
