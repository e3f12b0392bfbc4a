"""The sharpened map and the local resolution of a finished refinement."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cryosweep import config as schemas
from cryosweep import diagnostics, rules
from cryosweep.io.maps import write_map
from cryosweep.job.outputs import save_figures
from cryosweep.job.starting import Start
from cryosweep.local_resolution import MIN_WIDTH_PX, WIDTH_PER_RESOLUTION, filter_locally, local_resolution
from cryosweep.reconstruction import HalfMaps
from cryosweep.sharpening import apply_b_factor, sharpen
from cryosweep.study.assessment import Score, guinier_table


def postprocess(
    chosen: schemas.PostprocessingConfig, folder: Path, half_maps: HalfMaps, scored: Score, mask: Tensor,
    start: Start,
) -> tuple[dict[str, float], tuple[rules.Finding, ...]]:  # fmt: skip
    """Write the sharpened map, its Guinier plot and, if chosen, local resolution; metrics and findings."""
    pixel_size = half_maps.pixel_size
    sharpened = sharpen(
        half_maps, mask, scored.own.corrected, b_factor=chosen.b_factor, fit_from=chosen.guinier_from
    )
    table = guinier_table(sharpened)
    table.to_csv(folder / "guinier.csv", index=False, float_format="%.6f")
    volumes = {"sharpened": sharpened.volume}
    figures = {
        "guinier": diagnostics.guinier_figure(
            {str(name): column.to_numpy() for name, column in table.items()}, pixel_size=pixel_size,
            b_factor=sharpened.b_factor, title=sharpened.description,
        )
    }  # fmt: skip
    metrics = {"sharpening/b_factor": sharpened.b_factor}
    if sharpened.fit is not None:
        metrics["sharpening/b_factor_se"] = sharpened.fit.b_factor_se
    findings: list[rules.Finding | None] = [*sharpened.findings]
    if chosen.local_resolution:
        width = chosen.local_resolution_window or max(
            WIDTH_PER_RESOLUTION * sharpened.resolution, MIN_WIDTH_PX * pixel_size
        )
        found = local_resolution(
            *half_maps.pair, mask, pixel_size=pixel_size, window_width=width,
            threshold=chosen.local_resolution_threshold, step=chosen.local_resolution_step,
        )  # fmt: skip
        mean = 0.5 * (half_maps.half_a + half_maps.half_b)
        boosted = apply_b_factor(
            mean, sharpened.b_factor, resolution=float(found.resolution.min()), pixel_size=pixel_size
        )
        volumes["local_resolution"] = found.resolution
        volumes["locally_filtered"] = filter_locally(boosted, found.resolution, pixel_size=pixel_size)
        figures["local_resolution"] = diagnostics.local_resolution_figure(
            found.resolution.cpu().numpy(), volumes["locally_filtered"].cpu().numpy(), mask.cpu().numpy(),
            pixel_size=pixel_size, floor=found.floor,
            title=f"local resolution at FSC {found.threshold:g}, windows of {found.window_width:.0f} Å",
        )  # fmt: skip
        names = ("p05", "median", "p95", "at_floor")
        metrics |= {f"local_resolution/{name}": x for name, x in zip(names, found.shares(mask), strict=True)}
        findings.append(found.finding(mask))
    for name, volume in volumes.items():
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=pixel_size, origin=start.origin)
    save_figures(folder, figures)
    return metrics, rules.present(findings)
