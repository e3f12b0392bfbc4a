"""What neighbouring density adds to the agreement of a job's half-maps, where a base tells it apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep import diagnostics, rules
from cryosweep.config import JobConfig
from cryosweep.job.data import Data
from cryosweep.job.masks import cut_mask
from cryosweep.job.outputs import save_figures
from cryosweep.job.starting import Start
from cryosweep.job.subtraction import COMMON, Images, outside_of
from cryosweep.neighbours import (
    expected_truth,
    most_of_truth,
    neighbour_power,
    neighbours_at,
    promised_fsc,
)
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps
from cryosweep.refinement import Refinement, last_common_shell
from cryosweep.study.assessment import Ruler, Score
from cryosweep.subtraction import USABLE_GREY_SCALE, Rest, grey_scale, rest_of

# The neighbours end where the domain's undilated region begins: what a wider cut leaves, inside the mask, is
# what does the harm.
CUT = replace(COMMON, keep_padding_width=6.0)
# Shells beyond those that the halves share, which a mask mixes with them.
BEYOND = 4
MASKS = {"own": "the aligning mask", "frozen": "the scoring mask"}


@dataclass(frozen=True)
class Neighbours:
    """What was measured under both masks of a job.

    Attributes:
        metrics: shares over the scoring band, by metric name.
        findings: R26 under either mask.
        curves: (n_shells,) by column of `fsc.csv`: the FSC with the truth that is to be expected without the
            neighbours' part, and the most that it can be.
    """

    metrics: dict[str, float]
    findings: tuple[rules.Finding, ...]
    curves: dict[str, Tensor]


def neighbours_apart(
    config: JobConfig, data: Data, start: Start, images: Images, base: Tensor | None, device: torch.device
) -> Rest | str:
    """The map of the neighbours for each half-set, or why there is none.

    It is taken from half-maps of the images that are refined: after a subtraction it holds what that left.
    """
    if not config.scoring.neighbours:
        return "scoring.neighbours=false"
    if base is None:
        return "with mask=file and scoring=file no map tells the domain from the rest"
    if isinstance(config.mask_base, schemas.ConsensusBase):
        return "mask_base=consensus is the whole map, which has no neighbours"
    made = config.scoring if isinstance(config.scoring, schemas.SoftScoring) else config.mask
    assert isinstance(made, schemas.SoftScoring | schemas.SoftMask)
    region = replace(made, dilation_radius=0, soft_padding_width=CUT.keep_padding_width)
    try:
        kept = cut_mask(base, region, "mask_base", data.particles.pixel_size)
        removed = outside_of(kept, config, CUT, data, start)
    except ValueError as error:
        return f"nothing lies outside the domain ({error})"
    rest = rest_of(images.half_maps, removed, filter="fsc")
    elsewhere = isinstance(config.consensus, schemas.ConsensusFiles | schemas.ModelConsensus)
    if not elsewhere or images.rest is not None:
        return rest
    # half-maps that come from elsewhere: at the grey scale of the images, or not at all
    factor, _ = grey_scale(images.particles, start.half_maps, device=device)
    low, high = USABLE_GREY_SCALE
    if not low <= factor <= high:
        return f"the images hold {factor:.2f} times what the starting half-maps predict"
    a, b = (factor * half for half in rest.maps.pair)
    return replace(rest, maps=HalfMaps(a, b, rest.maps.pixel_size))


def measure_neighbours(
    images: Images, rest: Rest, scored: Score, result: Refinement, half_maps: HalfMaps, mask: Tensor,
    ruler: Ruler, device: torch.device, progress: Progress,
) -> Neighbours:  # fmt: skip
    """Half-maps (d, d, d) at the refined poses against what the neighbours contribute to them."""
    progress.start(len(images.particles), "measuring neighbours")
    # where the halves share nothing, neighbours add nothing
    reach = max(last_common_shell(curve) for curve in (scored.own.tight, scored.frozen.tight))
    there = neighbours_at(
        images.particles, rest, result.rotations, result.shifts, device=device,
        max_shell=reach + BEYOND, advance=progress.advance,
    )  # fmt: skip
    metrics: dict[str, float] = {}
    findings: list[rules.Finding | None] = []
    curves: dict[str, Tensor] = {}
    halves = (("own", mask, scored.own.tight), ("frozen", ruler.mask, scored.frozen.tight))
    for name, under, curve in halves:
        power = neighbour_power(half_maps, there, under)
        share = power.share(ruler.first_shell, ruler.last_shell)
        metrics[f"neighbours/share_{name}"] = share
        findings.append(rules.neighbours_share(share, mask=MASKS[name]))
        curves[f"{name}_truth_expected"] = expected_truth(curve, power)
        curves[f"{name}_truth_at_most"] = most_of_truth(curve, power)
    return Neighbours(metrics, rules.present(findings), curves)


def draw_neighbours(folder: Path, curves: pd.DataFrame, pixel_size: float) -> None:
    """`figures/neighbours.png` from the columns of `fsc.csv`."""
    columns = {str(name): column.to_numpy(copy=True) for name, column in curves.items()}
    panels = {
        f"under {words}": diagnostics.NeighbourCurves(
            promised=promised_fsc(torch.from_numpy(columns[half_maps])).numpy(),
            expected=columns[f"{name}_truth_expected"],
            at_most=columns[f"{name}_truth_at_most"],
            truth=columns.get("truth") if name == "frozen" else None,
        )
        for (name, words), half_maps in zip(MASKS.items(), ("own_tight", "frozen"), strict=True)
    }
    figure = diagnostics.neighbours_figure(panels, frequency=columns["frequency"], pixel_size=pixel_size)
    save_figures(folder, {"neighbours": figure})
