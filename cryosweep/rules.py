"""Rules of thumb of the field as pure functions: plain numbers in, a finding or None out.

A finding says what was seen, which threshold it fails and whose threshold that is, and what to change. Its
level tells how to take it: an error means that the result is not to be used (or, before work starts, that
the job cannot be right), a warning that it is to be doubted, information that it can be read wrongly.
docs/rules.md is the table of them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cryosweep.accuracy import needed_step
from cryosweep.mask import NEGLIGIBLE, density_on_edge, edge_width_px, fine_power, minimum_soft_padding

Level = Literal["error", "warning", "info"]
Array = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]

LEVELS: tuple[Level, ...] = ("error", "warning", "info")

GUIDE = "CryoSPARC guide, local refinement"
CASE = "CryoSPARC guide, tri-snRNP case study"
OWN = "estimate of this project"

# R1: root mean square of the density on the edge, as a ratio to that inside, from which it cuts density.
CUT = 0.25
# R1: px that a measured edge may fall short of the padding advised: it reads up to 1.5 px too narrow.
MEASURED_SLACK_PX = 2.5
START_PADDING = 1.3
DILATION_RANGE = (2.0, 15.0)
# R6: what the base's smoothing may leave of its amplitude at the resolution of the map.
LEFT_AMPLITUDE = 0.1
# R6: a mask base should be low-passed this many times coarser than the resolution expected: a threshold is
# not linear and makes finer detail of what it is given. Above this share of its power in finer detail a base
# counts as rough. The ribosome smoothed as advised has 0.04 to 0.10, whole or cut into a domain, and 0.62 to
# 0.72 unsmoothed.
BASE_COARSER, ROUGH_BASE = 3.0, 0.15
# A Gaussian of this share of a resolution halves the amplitude there: exp(-2 (pi sigma k)^2) = 1/2.
_HALF_AMPLITUDE = math.sqrt(0.5 * math.log(2.0)) / math.pi
# R7
GAP, GAP_SHELLS = 0.1, 5
UNCORRECTED_SHELLS = 2
FSC_LIMIT = 0.143
# R8, R9
TAIL_SHARE, TAIL_SD = 0.1, 3.0
LEAK, LEAK_SHELLS = 0.05, 12
# R10
AT_LIMIT, NEAR_LIMIT, PEAK = 0.02, 0.95, 2.0
LEAST_EXTENT_IN_SIGMA = 2.0
# R12, kDa; Å^3 a dalton of protein takes up (partial specific volume 0.73 cm^3/g, Harpaz et al. 1994)
SMALL, EXPLORATORY = 150.0, 50.0
VOLUME_PER_DALTON = 1.21
LEAST_CERTAINTY = 0.1
# R21: a fulcrum within this share of the radius counts as central.
CENTRAL = 0.25
PRECISION_RATIO = 10.0
LEAST_CFAR, LEAST_SCF = 0.5, 0.81
HALF_IMBALANCE = 0.02
SHADOW = 0.1
UNMASKED_TO_MASKED = 1.5
NEAR_NYQUIST = 1.05
# R26: chosen on 24 refinements of three domains of the simulated ribosome, judged on 24 others; docs/rules.md
NEIGHBOUR_SHARE, UNQUOTABLE_SHARE, RIM_SHARE = 0.20, 0.38, 0.07
_RIBOSOME = "48 refinements of a simulated ribosome"
_DOMAINS = "three domains of a simulated ribosome"
# R27
TOLERABLE_SHORTFALL = 0.03
# R28: SEs that a B-factor lies below 0; R29: SDs of the FSC of noise in a window below the threshold.
CLEAR_B_FACTOR, CLEAR_WINDOW = 2.0, 3.0
# R30: between what three domains of the simulated ribosome showed; docs/rules.md
ALONG = 0.55


@dataclass(frozen=True)
class Finding:
    """What one rule objects to, as sentences for a person.

    Attributes:
        code: of the rule, as in docs/rules.md.
        level: error, warning or info.
        seen: what was measured, with the number.
        threshold: what it should have been.
        source: whose threshold that is.
        change: what to do.
    """

    code: str
    level: Level
    seen: str
    threshold: str
    source: str
    change: str

    def __str__(self) -> str:
        return f"{self.code} {self.level}: {self.seen}; {self.threshold} ({self.source}). {self.change}."


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then information; by code within each."""
    return tuple(sorted(findings, key=lambda found: (LEVELS.index(found.level), int(found.code[1:]))))


def present(found: Iterable[Finding | None]) -> tuple[Finding, ...]:
    """The findings that there are, worst first."""
    return worst_first(each for each in found if each is not None)


# ---- masks ----


def soft_padding(
    padding: float,
    *,
    resolution: float,
    pixel_size: float,
    cut_density: float = 0.0,
    measured: bool = False,
) -> Finding | None:
    """R1: soft padding of at least 5 times the resolution, less one pixel.

    Args:
        padding: Å; up to one pixel is a hard edge.
        resolution: Å, of the map that is masked.
        pixel_size: Å.
        cut_density: `mask.density_on_edge` of that map: a hard edge that cuts density is an error.
        measured: whether `padding` was measured (`mask.edge_width_px`); 2.5 px less then pass.
    """
    minimum = minimum_soft_padding(resolution, pixel_size)
    advised = (
        f"at least {minimum:.1f} Å ({round(minimum / pixel_size)} px), which is 5 times the resolution of "
        f"{resolution:.1f} Å, is advised"
    )
    hard, slack = padding <= pixel_size, MEASURED_SLACK_PX if measured else 1.0
    if not hard and padding >= minimum - slack * pixel_size * (1 + 1e-6):
        return None
    width = f"{padding:.1f} Å ({padding / pixel_size:.1f} px)"
    if hard:
        seen, change = "the mask has a hard edge", "Widen the soft padding"
    else:
        seen = f"the soft padding is {width}"
        if measured:
            seen = f"the edge of the mask is as steep as a soft padding of {width}"
        change = "The masked FSC may read too well: widen the soft padding, or trust the corrected FSC only"
    cuts = cut_density > CUT
    if cuts:
        seen += f" and cuts through density: on it the map has {cut_density:.0%} of its root mean square "
        seen += "inside"
        change += ", or dilate until the edge lies in solvent"
    if hard:
        change += "; until then compare runs under the scoring mask only"
    return Finding("R1", "error" if hard and cuts else "warning", seen, advised, GUIDE, change)


def padding_to_start_with(padding: float, *, resolution: float, pixel_size: float) -> Finding | None:
    """R2: a first mask is better too soft than too hard, 1.3 times the least padding."""
    minimum = minimum_soft_padding(resolution, pixel_size)
    wanted = START_PADDING * minimum
    if padding < minimum - pixel_size * (1 + 1e-6) or padding >= wanted - pixel_size:
        return None  # below, R1 speaks
    return Finding(
        "R2", "info", f"the soft padding is {padding:.1f} Å",
        f"to begin with {wanted:.0f} Å, 1.3 times the least, leave room to tighten",
        f"{CASE}: 17 px where 13 are the least",
        "Begin softer and tighten while the corrected FSC follows the tight one",
    )  # fmt: skip


def dilation(radius: float) -> Finding | None:
    """R3: a mask to refine with is dilated by about 2 to 15 Å.

    Args:
        radius: Å.
    """
    low, high = DILATION_RANGE
    if low <= radius <= high:
        return None
    source = f"{CASE}: 7 Å; range: {OWN}"
    if radius < low:
        return Finding(
            "R3", "info", f"the mask is dilated by {radius:.1f} Å", f"{low:g} to {high:g} Å are usual",
            source, "Density that shows up later may fall into the soft edge: try 5 to 10 Å beside it",
        )  # fmt: skip
    return Finding(
        "R3", "info", f"the mask is dilated by {radius:.1f} Å", f"{low:g} to {high:g} Å are usual", source,
        "Wide masks let neighbours in: try 5 to 10 Å beside it",
    )  # fmt: skip


def subtraction_dilation(radius: float) -> Finding | None:
    """R4: a mask of what is subtracted is not dilated.

    Args:
        radius: Å.
    """
    if radius <= 0.0:
        return None
    return Finding(
        "R4", "warning", f"the subtraction mask is dilated by {radius:.1f} Å", "0 is advised", CASE,
        "Set its dilation to 0: what it takes in beyond the density is noise, subtracted from every image",
    )  # fmt: skip


def mask_values(low: float, high: float) -> Finding | None:
    """R5: a mask lies between 0 and 1 and is not empty."""
    if low == 0.0 and high == 0.0:
        return Finding(
            "R5", "error", "the mask is zero everywhere", "it must hold something", "CryoSPARC Discuss 13406",
            "Lower its threshold or choose another mask base",
        )  # fmt: skip
    if low >= 0.0 and high <= 1.0:
        return None
    return Finding(
        "R5", "error", f"the mask has values from {low:g} to {high:g}", "it must lie between 0 and 1",
        "CryoSPARC Discuss 13406: it multiplies the map", "Threshold it again or divide it by its maximum",
    )  # fmt: skip


def mask_grid(
    *, box: int, pixel_size: float, origin: Vector, map_box: int, map_pixel_size: float, map_origin: Vector
) -> Finding | None:
    """R5: a mask lies on the grid of its map: box, pixel size (0.1 %) and origin (half a pixel).

    Args:
        box: px.
        pixel_size: Å.
        origin: Å, of the first voxel.
        map_box: px.
        map_pixel_size: Å.
        map_origin: Å.
    """
    apart = max(abs(a - b) for a, b in zip(origin, map_origin, strict=True))
    same = box == map_box and abs(pixel_size / map_pixel_size - 1.0) <= 1e-3
    if same and apart <= 0.5 * map_pixel_size:
        return None
    seen = f"the mask has {box} px of {pixel_size:g} Å, its map {map_box} px of {map_pixel_size:g} Å"
    if same:
        seen = f"mask and map lie {apart:.1f} Å apart by their headers"
    return Finding(
        "R5", "error", seen, "box, pixel size and origin must be those of the map", "CryoSPARC Discuss 13406",
        "Resample the mask on the grid of the map, or correct its header",
    )  # fmt: skip


def mask_inside_box(edge: float) -> Finding | None:
    """R5: a mask ends within its box.

    Args:
        edge: largest value on the faces of the box.
    """
    if edge <= NEGLIGIBLE:
        return None
    return Finding(
        "R5", "warning",
        f"the mask reaches the box boundary (value {edge:.2f} there), so its edge is cut off",
        f"at most {NEGLIGIBLE:g} there", OWN,
        "Use a larger box, or reduce the dilation radius or the soft padding width",
    )  # fmt: skip


def base_smoothness(sigma: float, *, resolution: float) -> Finding | None:
    """R6: what a mask is cut from is smooth at the resolution the map reaches.

    A Gaussian of `sigma` Å leaves exp(-2 pi^2 sigma^2 / d^2) of the amplitude at d Å; the case study's 2 Å
    leave 0.7 % at 4 Å.

    Args:
        sigma: Å, of the Gaussian the base was smoothed with.
        resolution: Å, of the refined map.
    """
    left = math.exp(-2.0 * (math.pi * sigma / resolution) ** 2)
    if left <= LEFT_AMPLITUDE:
        return None
    return Finding(
        "R6", "warning",
        f"smoothing the mask base with {sigma:.1f} Å leaves {left:.0%} of its amplitude at "
        f"{resolution:.1f} Å",
        f"at most {LEFT_AMPLITUDE:.0%}", f"{CASE} (smooth bases); number: {OWN}",
        f"Smooth the base with {math.ceil(0.35 * resolution):g} Å or more: fine features of a mask correlate "
        "the half-maps",
    )  # fmt: skip


def base_detail(share: float, *, resolution: float) -> Finding | None:
    """R6: what a mask is cut from holds little detail finer than 3 times the resolution expected.

    Args:
        share: of the power of the base in such detail, `mask.fine_power`.
        resolution: Å, expected in the end.
    """
    if share <= ROUGH_BASE:
        return None
    coarser = BASE_COARSER * resolution
    return Finding(
        "R6", "warning",
        f"the mask base is not smooth: {share:.0%} of its power lies in detail finer than {coarser:.1f} Å, "
        f"{BASE_COARSER:g} times the resolution of {resolution:.1f} Å",
        f"at most {ROUGH_BASE:.0%}", f"{CASE} (smooth bases); numbers: {OWN}",
        f"Smooth the base by a Gaussian of {_HALF_AMPLITUDE * coarser:.1f} Å or more before the threshold: "
        "what is sharp in a mask correlates the half maps",
    )  # fmt: skip


def check_mask(
    mask: Tensor,
    *,
    pixel_size: float,
    resolution: float,
    soft_padding_width: float | None = None,
    density: Tensor | None = None,
    base: Tensor | None = None,
    base_resolution: float | None = None,
) -> tuple[Finding, ...]:
    """R1, R2, R5 and R6 of one mask.

    Args:
        mask: (d, d, d).
        pixel_size: Å.
        resolution: Å, of the map to be masked.
        soft_padding_width: Å, as the mask was made; a mask of zeros and ones counts as unpadded whatever this
            says. Without it the width is measured, see `mask.edge_width_px`, and R2 says nothing.
        density: (d, d, d), a smooth map of what is masked: how much of it lies on an edge that is too sharp.
            Default `base`; without both that is not judged.
        base: (d, d, d), the map that the mask was cut from, judged for its smoothness.
        base_resolution: Å, the resolution that is expected in the end, for the smoothness of `base`; default
            `resolution`.
    """
    values = mask_values(float(mask.min()), float(mask.max()))
    if values is not None and float(mask.max()) == 0.0:
        return (values,)
    at = {"resolution": resolution, "pixel_size": pixel_size}
    measured = soft_padding_width is None
    padding = edge_width_px(mask) * pixel_size  # 0 for a hard edge
    if soft_padding_width is not None and padding > 0.0:
        padding = soft_padding_width
    edge = soft_padding(padding, **at, measured=measured)
    judged = base if density is None else density
    if edge is not None and judged is not None:
        edge = soft_padding(padding, **at, measured=measured, cut_density=density_on_edge(mask, judged))
    rough: Finding | None = None
    if base is not None:
        expected = resolution if base_resolution is None else base_resolution
        share = fine_power(base, pixel_size=pixel_size, finer_than=BASE_COARSER * expected)
        rough = base_detail(share, resolution=expected)
    boundary = max(float(mask.select(axis, end).max()) for axis in range(3) for end in (0, -1))
    return present(
        (
            values,
            edge,
            None if measured else padding_to_start_with(padding, **at),
            mask_inside_box(boundary),
            rough,
        )
    )


# ---- curves ----


def tight_and_corrected(tight: Array, corrected: Array, *, randomised_from: int) -> Finding | None:
    """R7: the corrected curve follows the tight one.

    A gap of more than 0.1 over 5 shells is a warning as long as the curves meet again before the corrected
    one has fallen to 0.143, and an error where they do not.

    Args:
        tight: (n_shells,) FSC under the mask.
        corrected: (n_shells,) the same corrected by phase randomisation.
        randomised_from: first shell with random phases; two more are left uncorrected.
    """
    first = randomised_from + UNCORRECTED_SHELLS
    ends = np.flatnonzero(tight[first:] < FSC_LIMIT)
    last = first + int(ends[0]) if ends.size else tight.size
    gap = tight[first:last] - corrected[first:last]
    wide = int((gap > GAP).sum())
    if wide < GAP_SHELLS:
        return None
    falls = np.flatnonzero(corrected[first:last] < FSC_LIMIT)
    meets = falls.size == 0 or bool(gap[max(int(falls[0]) - 1, 0)] <= GAP)
    seen = f"the corrected FSC lies up to {float(gap.max()):.2f} below the tight one, more than {GAP:g} in "
    seen += f"{wide} shells"
    threshold = f"a gap of more than {GAP:g} in fewer than {GAP_SHELLS} shells"
    source = f"{CASE}, CryoSPARC Discuss 201; numbers: {OWN}"
    if meets:
        return Finding(
            "R7", "warning", f"{seen}, but meets it again", threshold, source,
            "The mask is a little tight: soften it and see whether the gap closes",
        )  # fmt: skip
    return Finding(
        "R7", "error", f"{seen}, and falls to {FSC_LIMIT} apart from it", threshold, source,
        "The mask makes the resolution: quote the corrected value at most, and soften the mask",
    )  # fmt: skip


def corrected_and_unmasked(
    tight: Array, corrected: Array, none: Array, *, randomised_from: int
) -> Finding | None:
    """R7: the corrected curve does not fall below the unmasked one.

    Where the tight curve does so too, the masked region agrees less than the whole: it moves, or the mask
    lies beside it. Where only the corrected one does, the mask makes more of the tight curve than there is
    signal.

    Args:
        tight: (n_shells,) FSC under the mask.
        corrected: (n_shells,) the same corrected by phase randomisation.
        none: (n_shells,) FSC without a mask.
        randomised_from: as in `tight_and_corrected`.
    """
    shells = np.flatnonzero(none >= FSC_LIMIT)
    shells = shells[shells >= randomised_from + UNCORRECTED_SHELLS]
    below = shells[none[shells] - corrected[shells] > GAP]
    if below.size < GAP_SHELLS:
        return None
    seen = f"the corrected FSC lies below the unmasked one by more than {GAP:g} in {below.size} shells"
    threshold = f"fewer than {GAP_SHELLS}"
    source = f"RELION issue 824, which then does without the mask; numbers: {OWN}"
    if float(np.mean(none[below] - tight[below] > GAP)) > 0.5:
        return Finding(
            "R7", "warning", f"{seen}, and so does the tight one", threshold, source,
            "Expected of a domain that moves and is not refined yet; else the mask does not lie where the "
            "half-maps agree: check its place, grid and handedness",
        )  # fmt: skip
    return Finding(
        "R7", "error", f"{seen}, while the tight one does not", threshold, source,
        "The mask makes the resolution under it: soften it",
    )  # fmt: skip


def fsc_tail(curve: Array, samples: Array) -> Finding | None:
    """R8: the last tenth of the shells correlates by chance only.

    The mean over the tail has the SD sqrt(sum 1 / 2 N_eff) / n, as the FSC area has.

    Args:
        curve: (n_shells,) FSC of unfiltered half-maps under a mask.
        samples: (n_shells,) `resolution.effective_samples` of that mask.
    """
    count = max(3, round(TAIL_SHARE * curve.size))
    tail, sd = curve[-count:], 1.0 / np.sqrt(2.0 * samples[-count:])
    mean, spread = float(tail.mean()), float(np.sqrt(np.sum(sd**2)) / count)
    falls = np.flatnonzero(curve[1:] < FSC_LIMIT)
    threshold = f"within {TAIL_SD:g} SD ({TAIL_SD * spread:.3f}) of 0, and no shell above {FSC_LIMIT}"
    source = f"CryoSPARC Discuss 12040, 10918; numbers: {OWN}"
    seen = f"the FSC of the last {count} shells is {mean:.3f} on average"
    if falls.size == 0 or int(falls[0]) + 1 >= curve.size - count:
        return Finding(
            "R8", "warning", f"{seen}: it has not fallen to zero before Nyquist", threshold, source,
            "Either the data go further than the pixel size shows: use less binning; or the halves share "
            "particles (duplicates) or noise: look for both",
        )  # fmt: skip
    if float(tail.max()) > FSC_LIMIT + TAIL_SD * float(sd.max()):
        return Finding(
            "R8", "error", f"the FSC rises again to {float(tail.max()):.2f} in the last {count} shells",
            threshold, source,
            "The halves share something that is not signal: look for duplicate particles across the "
            "half-sets, and for a mask that is too tight or hard",
        )  # fmt: skip
    if abs(mean) <= TAIL_SD * spread:
        return None
    return Finding(
        "R8", "warning", seen, threshold, source,
        "Look for duplicate particles across the half-sets, and for a mask that is too tight or hard",
    )  # fmt: skip


def mask_leak(randomised: Array, samples: Array, *, randomised_from: int) -> Finding | None:
    """R9: half-maps with random phases do not correlate under the mask beyond what chance allows.

    Args:
        randomised: (n_shells,) FSC under the mask with random phases.
        samples: (n_shells,) `resolution.effective_samples` of the mask.
        randomised_from: first shell with random phases.
    """
    first = randomised_from + UNCORRECTED_SHELLS
    shells = slice(first, min(first + LEAK_SHELLS, randomised.size))
    part = randomised[shells]
    if part.size < GAP_SHELLS:
        return None
    spread = float(np.sqrt(np.sum(1.0 / (2.0 * samples[shells]))) / part.size)
    limit, mean = max(LEAK, TAIL_SD * spread), float(part.mean())
    if mean <= limit:
        return None
    return Finding(
        "R9", "warning",
        f"with random phases the half-maps still agree to {mean:.2f} under the mask, over {part.size} shells",
        f"at most {limit:.2f} (the larger of {LEAK:g} and {TAIL_SD:g} SD)",
        f"Chen et al. 2013, Ultramicroscopy 135, 24; numbers: {OWN}",
        "The mask leaks: its edge carries low resolution into high shells. Widen the soft padding",
    )  # fmt: skip


def unmasked_is_worse(none: float, tight: float) -> Finding | None:
    """R22: a poor unmasked FSC is what a local refinement gives, and no fault.

    Args:
        none: Å, resolution without a mask.
        tight: Å, under the mask.
    """
    if none <= UNMASKED_TO_MASKED * tight:
        return None
    return Finding(
        "R22", "info", f"without a mask the half-maps agree to {none:.1f} Å only, under it to {tight:.1f} Å",
        f"expected where one domain of several is aligned (more than {UNMASKED_TO_MASKED:g} times)", CASE,
        "Nothing: what lies outside the mask blurs when the domain is aligned",
    )  # fmt: skip


def nyquist_reached(resolution: float, *, nyquist: float) -> Finding | None:
    """R25: the resolution found is not that of the pixel size.

    Args:
        resolution: Å, at FSC 0.143.
        nyquist: Å, two pixels of the images that were aligned.
    """
    if resolution > NEAR_NYQUIST * nyquist:
        return None
    return Finding(
        "R25", "warning", f"the resolution of {resolution:.2f} Å is that of the pixel size",
        f"coarser than {NEAR_NYQUIST * nyquist:.2f} Å (Nyquist {nyquist:.2f} Å)", OWN,
        "Use images of a smaller pixel size; until then the value is a limit, not a measurement",
    )  # fmt: skip


def band_beyond_nyquist(resolution: float, *, nyquist: float, key: str) -> Finding | None:
    """R25: nothing finer than Nyquist of the images is asked for.

    Args:
        resolution: Å, asked for.
        nyquist: Å, of the images as they are aligned.
        key: of the configuration.
    """
    if resolution >= nyquist:
        return None
    return Finding(
        "R25", "error", f"{key}={resolution:g}: lies beyond Nyquist", f"{nyquist:g} Å or coarser",
        "sampling theorem", "Give a coarser resolution, or images of a smaller pixel size",
    )  # fmt: skip


# ---- search ----


def at_limit(reach: Array, extent: float, *, what: str, unit: str) -> Finding | None:
    """R10: hardly any particle ends at the limit of the search, and no peak stands there.

    Args:
        reach: (n,) what the extent limits, of each particle: a norm, or the largest component.
        extent: the limit, in the same unit.
        what: "rotation" or "shift".
        unit: "°" or " Å".
    """
    if extent <= 0.0 or reach.size == 0:
        return None
    bins = np.histogram(reach / extent, bins=np.linspace(0.75, 1.0 + 1e-6, 6))[0]
    share, before = float(np.mean(reach > NEAR_LIMIT * extent)), float(bins[:4].mean())
    # three Poisson SDs above what the bins before it hold
    peak = bins[4] > PEAK * before + 3.0 * math.sqrt(max(before, 1.0))
    if share <= AT_LIMIT and not peak:
        return None
    seen = f"{share:.1%} of the particles end within 5 % of the {what} extent of {extent:g}{unit}"
    if peak:
        seen += f", {bins[4] / max(before, 1.0):.1f} times as many as in the 5 % before it"
    return Finding(
        "R10", "warning", seen, f"at most {AT_LIMIT:.0%}, and no peak there",
        f"{CASE}, CryoSPARC Discuss 15681; numbers: {OWN}",
        f"Widen search.{what}_extent if the domain holds enough signal to be placed; if it does not "
        "(R13, R14), use priors instead",
    )  # fmt: skip


def extent_in_sigma(extent: float, sigma: float | None, *, what: str) -> Finding | None:
    """R11: an extent leaves room for its prior, 3 standard deviations by default, 2 at least.

    Args:
        extent: of the search.
        sigma: of the prior, in the same unit, or None.
        what: "rotation" or "shift".
    """
    if sigma is None or extent >= LEAST_EXTENT_IN_SIGMA * sigma:
        return None
    return Finding(
        "R11", "warning", f"the {what} extent is {extent / sigma:.1f} SD of its prior",
        f"{LEAST_EXTENT_IN_SIGMA:g} at least, 3 as a rule", GUIDE,
        f"Within so narrow an extent the prior says nothing: widen search.{what}_extent or narrow "
        f"search.{what}_prior",
    )  # fmt: skip


def recentring_without_prior(
    recentre: bool, *, rotation: float | None, shift: float | None
) -> Finding | None:
    """R11: a search that follows the poses has priors to hold it.

    Args:
        recentre: whether anchors move to the current poses.
        rotation: SD of the rotation prior, or None.
        shift: SD of the shift prior, or None.
    """
    if not recentre or (rotation is not None and shift is not None):
        return None
    return Finding(
        "R11", "warning", "the search is re-centred on the current poses without a prior on both moves",
        "a prior is strongly recommended", GUIDE,
        "Choose search=prior, or search.recentre=false: nothing keeps poses from drifting",
    )  # fmt: skip


def protein_mass(volume: float) -> float:
    """kDa of protein in a volume of Å^3, at 1.21 Å^3 a dalton; a blurred or dilated volume gives too much."""
    return volume / VOLUME_PER_DALTON / 1000.0


def small_domain(mass: float, *, has_prior: bool) -> Finding | None:
    """R12: small domains need priors, and below 50 kDa nothing is settled.

    Args:
        mass: kDa, `protein_mass` of the undilated region.
        has_prior: whether rotations or shifts have a prior.
    """
    if mass < EXPLORATORY:
        return Finding(
            "R12", "warning", f"the masked region holds about {mass:.0f} kDa",
            f"{EXPLORATORY:g} kDa or more; about 40 is the smallest placed so far",
            "CryoSPARC Discuss 5553; Kimanius et al. 2024 (Blush)",
            "Take the run as exploratory: use priors, small extents and subtraction, and check R13 and R14",
        )  # fmt: skip
    if mass >= SMALL or has_prior:
        return None
    return Finding(
        "R12", "warning", f"the masked region holds about {mass:.0f} kDa and the search has no prior",
        f"{SMALL:g} kDa or more without one", "CryoSPARC Discuss 5553 (RELION's rule of 100 to 150 kDa)",
        "Choose search=prior and smaller extents",
    )  # fmt: skip


def angular_accuracy(accuracy: float, *, resolution: float, diameter: float) -> Finding | None:
    """R13: the expected accuracy of rotations suffices for the resolution.

    Args:
        accuracy: degrees, mean of `accuracy.expected_accuracy`.
        resolution: Å, that the map has or should have.
        diameter: Å, of the domain.
    """
    step = needed_step(resolution, diameter)
    if accuracy <= step:
        return None
    reachable = math.pi * diameter * accuracy / 360.0
    return Finding(
        "R13", "warning", f"rotations can be told to {accuracy:.1f}° at best",
        f"{step:.1f}°, which {resolution:.1f} Å need at a diameter of {diameter:.0f} Å",
        "RELION (accuracy of rotations; 360 / ceil(pi D / d))",
        f"Expect about {reachable:.0f} Å of this domain: use a prior, subtract the rest, or take a larger "
        "region",
    )  # fmt: skip


def pose_certainty(certainty: Array, *, step: float) -> Finding | None:
    """R14: poses are certain enough for the FSC to mean something.

    Args:
        certainty: (n,) `accuracy.pose_certainty`, RELION's Pmax.
        step: degrees, of the cell it is the probability of.
    """
    mean = float(certainty.mean())
    if mean >= LEAST_CERTAINTY:
        return None
    return Finding(
        "R14", "warning",
        f"a pose lies within {step / 2:.1f}° of the best one with probability {mean:.2f} on average",
        f"{LEAST_CERTAINTY:g} or more", "RELION (average Pmax)",
        "The half-maps may agree because both are smooth: compare with a run from other half-sets, use a "
        "prior or a larger region",
    )  # fmt: skip


def half_balance(first: int, second: int) -> Finding | None:
    """R17: half-sets are of one size.

    Args:
        first: particles in half-set 1.
        second: in half-set 2.
    """
    apart = abs(first - second) / (first + second)
    if apart <= HALF_IMBALANCE:
        return None
    return Finding(
        "R17", "warning", f"the half-sets hold {first:,} and {second:,} particles, {apart:.1%} apart",
        f"{HALF_IMBALANCE:.0%}", "CryoSPARC Discuss 15675",
        "Keep the split if it comes from the refinement before; a subset should be drawn at random from both "
        "halves alike",
    )  # fmt: skip


def fulcrum_in_box(position: Sequence[float], *, box_length: float) -> Finding | None:
    """R21: the fulcrum lies inside the box.

    Args:
        position: x, y, z in Å from the box centre.
        box_length: Å.
    """
    half = box_length / 2.0
    if all(abs(value) <= half for value in position):
        return None
    shown = ", ".join(f"{value:.1f}" for value in position)
    return Finding(
        "R21", "error", f"the fulcrum ({shown}) Å from the box centre lies outside the box",
        f"within {half:.1f} Å", OWN,
        "Check the unit (px or Å) and the origin of the map that it was read from",
    )  # fmt: skip


def fulcrum_lever(
    lever: float, *, radius: float, rotation_extent: float, shift_extent: float
) -> Finding | None:
    """R21: with the fulcrum in the middle of a domain, the shift extent allows for a hinge at its rim.

    A rotation by theta about a hinge moves a fulcrum at distance h from it by 2 h sin(theta / 2). A fulcrum
    farther than a quarter of the radius from the centre is taken to have been put where the hinge is.

    Args:
        lever: Å, from the centre of the mask to the fulcrum.
        radius: Å, of a ball of the domain's volume.
        rotation_extent: degrees.
        shift_extent: Å.
    """
    if lever > CENTRAL * radius:
        return None
    distance = radius - lever
    needed = 2.0 * distance * math.sin(math.radians(min(rotation_extent, 180.0)) / 2.0)
    if shift_extent >= needed:
        return None
    return Finding(
        "R21", "info",
        f"the fulcrum lies {distance:.0f} Å inside the rim of the domain; if its hinge is at the rim, a turn "
        f"by {rotation_extent:g}° shifts it by {needed:.0f} Å, beyond the shift extent of {shift_extent:g} Å",
        f"a shift extent of {needed:.0f} Å, or a fulcrum at the hinge",
        f"{CASE} (fulcrum at the interface); number: {OWN}",
        "Put the fulcrum where the domain meets the rest, or sweep fulcrum and search.shift_extent together",
    )  # fmt: skip


def contact_along(along: float) -> Finding | None:
    """R30: the contact that is to be a fulcrum crosses one end of the domain and does not run along it.

    Args:
        along: as `fulcrum.Interface` has it.
    """
    if along <= ALONG:
        return None
    return Finding(
        "R30", "warning",
        f"the contact that gives the fulcrum runs along the domain: its SD on the line from the domain's "
        f"centre is {along:.2f} of the domain's radius of gyration",
        f"at most {ALONG:g}; so placed the fulcrum was 22 to 34 Å from the true hinge", _DOMAINS,
        "Set a marker where the domain turns (fulcrum=marker), or give the search a larger shift extent",
    )  # fmt: skip


def missed_poses(share: float, audited: int) -> Finding | None:
    """R27: the search finds what an exhaustive search of some particles finds, more often than chance allows.

    Args:
        share: of the particles audited, for which the exhaustive search was better.
        audited: number of particles.
    """
    if share - math.sqrt(share * (1.0 - share) / audited) <= TOLERABLE_SHORTFALL:
        return None
    return Finding(
        "R27", "warning",
        f"an exhaustive search finds a better pose for {share:.0%} of {audited} particles audited",
        f"{TOLERABLE_SHORTFALL:.0%} is tolerable", OWN,
        "Give smaller search extents, or a larger search.audit to know it better",
    )  # fmt: skip


# ---- directions ----


def precision_ratio(precision: Array) -> float:
    """Largest precision of a viewing direction over the smallest; infinite if one is not known at all."""
    low = float(precision.min())
    return float(precision.max()) / low if low > 0.0 else math.inf


def precision_spread(precision: Array) -> Finding | None:
    """R15: the precision of viewing directions stays within an order of magnitude.

    Args:
        precision: (m,) `anisotropy.slice_precision`.
    """
    ratio = precision_ratio(precision)
    if ratio <= PRECISION_RATIO:
        return None
    return Finding(
        "R15", "warning", f"the best known viewing direction is {ratio:.0f} times as precise as the worst",
        f"{PRECISION_RATIO:g} times", CASE,
        "The map is stretched along the views that lack: add tilted data, or thin out the common views",
    )  # fmt: skip


def orientation(cfar: float, scf: float | None) -> Finding | None:
    """R16: map and views are even in all directions.

    Args:
        cfar: `anisotropy.ConicalFsc.cfar`.
        scf: `anisotropy.sampling_compensation`, SCF*, or None where the views are not known.
    """
    poor_map, poor_views = cfar < LEAST_CFAR, scf is not None and scf < LEAST_SCF
    if not poor_map and not poor_views:
        return None
    if poor_map and poor_views:
        change = "Views are missing or junk is among the particles: add tilted data, or classify"
    elif poor_map and scf is None:
        change = "Look at the views too: missing ones, junk and too little signal all do this"
    elif poor_map:
        change = "The views are even but the map is not: particles that do not belong, or too little signal"
    else:
        change = "The map still looks even: the views cost signal, not yet shape"
    return Finding(
        "R16", "warning", f"cFAR is {cfar:.2f}" + ("" if scf is None else f" and SCF* is {scf:.2f}"),
        f"cFAR of {LEAST_CFAR:g} and SCF* of {LEAST_SCF:g} or more",
        "CryoSPARC guide, orientation diagnostics; Baldwin & Lyumkis 2021", change,
    )  # fmt: skip


# ---- comparison ----


def within_chance(difference: float, bar: float) -> Finding | None:
    """R18: a difference that runs by chance is none.

    Args:
        difference: of the scores of two runs.
        bar: that single runs, or their replicates, cannot resolve.
    """
    if abs(difference) >= bar:
        return None
    return Finding(
        "R18", "info", f"the scores differ by {abs(difference):.3f}", f"{bar:.3f} can be resolved",
        f"{CASE} (0.1 Å may be chance); the bar is measured or by formula",
        "Say that there is no difference, or run replicates with other half-set seeds",
    )  # fmt: skip


# ---- neighbours and subtraction ----


def subtraction_window(own: tuple[float, float], refinement: tuple[float, float]) -> Finding | None:
    """R19: the reference that is subtracted has the window of the refinement its poses come from.

    Args:
        own: inner and outer radius of the window, as fractions of half the box.
        refinement: the same of the refinement.
    """
    if own == refinement:
        return None
    return Finding(
        "R19", "error",
        f"the window of the subtraction is {own[0]:g} to {own[1]:g} of half the box, that of the refinement "
        f"{refinement[0]:g} to {refinement[1]:g}",
        "they must be equal", "CryoSPARC guide, particle subtraction",
        "Give both the same window, else the grey scale of what is subtracted is off",
    )  # fmt: skip


def subtraction_halves(subtracted_from: Sequence[int], half_sets: Sequence[int]) -> Finding | None:
    """R20: from each image the map of its own half-set is subtracted.

    Args:
        subtracted_from: (n,) half-set whose map was subtracted from each image.
        half_sets: (n,) half-set of each image.
    """
    mixed = int(np.sum(np.asarray(subtracted_from) != np.asarray(half_sets)))
    if mixed == 0:
        return None
    return Finding(
        "R20", "error", f"{mixed:,} images had the map of the other half-set subtracted", "none may",
        "CryoSPARC guide, particle subtraction; RELION",
        "Subtract map 1 from half-set 1 and map 2 from half-set 2, else the halves are no longer independent",
    )  # fmt: skip


def subtraction_shadow(before: float, after: float) -> Finding | None:
    """R23: little of the density that was subtracted is left.

    Args:
        before: power of the map in the well-aligned part of what was subtracted.
        after: the same, reconstructed from the subtracted images at the same poses.
    """
    left = after / before if before > 0.0 else 0.0
    if left <= SHADOW:
        return None
    return Finding(
        "R23", "warning", f"{left:.0%} of the power that was to be subtracted is left", f"{SHADOW:.0%}",
        f"{CASE} (reconstruct to check); number: {OWN}",
        "Check that the half-maps belong to these poses and half-sets and their grey scale to the images; "
        "what is subtracted must be well aligned: refine that region first, or leave the part that moves out "
        "of the subtraction mask",
    )  # fmt: skip


def scale_of_a_domain(refined: bool, *, masked_share: float) -> Finding | None:
    """R24: per-particle scale is refined on the whole particle, not on a masked domain.

    Args:
        refined: whether it is refined.
        masked_share: share of the particle's density inside the mask.
    """
    if not refined or masked_share >= 0.5:
        return None
    return Finding(
        "R24", "warning", f"per-particle scale is refined on {masked_share:.0%} of the particle's density",
        "the whole particle (half of it at least)", CASE,
        "Refine the scale in the consensus refinement and keep it, or leave it at 1",
    )  # fmt: skip


def neighbours_share(share: float, *, mask: str = "the mask") -> Finding | None:
    """R26: little of what the half-maps have in common under a mask belongs to neighbours.

    Args:
        share: of the masked half-maps' cross power that goes when the neighbours are taken out.
        mask: which one, in words.
    """
    if share <= NEIGHBOUR_SHARE:
        return None
    quotable = share <= UNQUOTABLE_SHARE
    return Finding(
        "R26", "warning" if quotable else "error",
        f"{share:.0%} of what the half-maps share under {mask} is neighbouring density",
        f"{NEIGHBOUR_SHARE:.0%}; above {UNQUOTABLE_SHARE:.0%} no resolution is to be quoted",
        _RIBOSOME,
        "At least part of this resolution belongs to the neighbours: do not compare it with other masks or "
        "domains; subtract them, or use a tighter mask",
    )  # fmt: skip


def rim_share(share: float) -> Finding | None:
    """R26: little of what the half-maps have in common lies in the soft edge, where neighbours are.

    The check that needs no subtraction.

    Args:
        share: `assessment.rim_share`.
    """
    if share <= RIM_SHARE:
        return None
    return Finding(
        "R26", "warning", f"{share:.0%} of what the half-maps share under the mask lies in its soft edge",
        f"{RIM_SHARE:.0%}", _RIBOSOME,
        "Neighbouring density reaches into the mask: subtract it before quoting a resolution",
    )  # fmt: skip


# ---- maps to look at ----


def b_factor(fitted: float, se: float) -> Finding | None:
    """R28: the B-factor of a Guinier fit is clearly below 0.

    Args:
        fitted: Å^2.
        se: Å^2, its standard error.
    """
    if fitted <= -CLEAR_B_FACTOR * se:
        return None
    return Finding(
        "R28", "warning",
        f"the B-factor of {fitted:.0f} ± {se:.0f} Å^2 is not clearly below 0: the amplitudes hardly fall off",
        f"{CLEAR_B_FACTOR:g} standard errors below 0", OWN,
        "Look at the Guinier plot before using the sharpened map",
    )  # fmt: skip


def no_b_factor(reason: str) -> Finding:
    """R28: a B-factor can be fitted at all.

    Args:
        reason: why not.
    """
    return Finding(
        "R28", "info", f"no B-factor was fitted and none applied: {reason}",
        "a line through several shells finer than 10 Å", "Rosenthal & Henderson 2003, J Mol Biol 333, 721",
        "Choose one for a sharper map",
    )  # fmt: skip


def local_window(threshold: float, scatter: float, *, window: float, resolution: float) -> Finding | None:
    """R29: the FSC of noise in a local window scatters well below the threshold.

    Args:
        threshold: FSC that local resolution is read at.
        scatter: SD of the FSC of noise in one window at that resolution.
        window: Å, its width.
        resolution: Å, the median under the mask.
    """
    if threshold >= CLEAR_WINDOW * scatter:
        return None
    return Finding(
        "R29", "warning",
        f"the FSC of noise in one window of {window:.0f} Å scatters by {scatter:.2f} at {resolution:.1f} Å",
        f"at most a third of the threshold of {threshold:g}", OWN,
        "What reads fine may do so by chance: widen the window or raise the threshold",
    )  # fmt: skip
