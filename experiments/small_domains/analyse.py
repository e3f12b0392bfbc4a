"""Which domains were aligned, by the truth and without it, and what the images could have told.

    python experiments/small_domains/analyse.py cryosweep_out/small_domains/sweep_* \
        --limit cryosweep_out/small_domains_limit/sweep_* --more cryosweep_out/small_domains_more/sweep_*

Reads the run folders of `experiment=small_domains` and `experiment=small_domains_limit` and prints the
frontier, how often the verdict without the truth is right, the width of the posterior beside the Cramér-Rao
bound, and what each choice does at the limit.

With the truth a run is

* `placed` if the median shift error is below half of the start's,
* `aligned` if the median rotation error is too, and the map is right (FSC 0.5 with the truth) to 10 Å or
  finer,

and `no` otherwise. Without it a run is taken as aligned if three signs agree:

* replicates: the two runs of the same particles in other half sets differ by less than half of what they
  moved from the start (medians of angles, one turn of the whole map taken out);
* precision: the posterior of a rotation is less than half as wide as prior and extents alone;
* half maps: they agree (corrected FSC 0.143) to 10 Å or finer.

The information: F is the curvature of the log-likelihood at the true pose with the true reference (its
inverse is the Cramér-Rao bound), C_0 the covariance that prior and extents leave, C = (F + 1 / C_0)^-1 the
least that a posterior can have. `N = sqrt(det C_0 / det C)` poses can be told apart, `E = sum W |S|^2` is the
energy of the signal in units of the noise. Of N wrong poses the best reaches sqrt(2 E) sqrt(2 ln N) by chance
and the right one E, so the right pose is found only if E exceeds 4 ln N.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import half_plane, shift_phase
from cryosweep.geometry import angle_between, mean_rotation, rotation_from_vector
from cryosweep.io import read_particles
from cryosweep.likelihood import log_likelihood_quadratic
from cryosweep.projector import make_reference, slices
from cryosweep.search import ExtentShape, Poses, SearchSpace, posterior_covariance, prior_quadratic
from cryosweep.simulate import (
    SimulationSettings,
    load_ribosome,
    load_truth,
    noise_power,
    render_domain,
    simulate,
)

RIGHT_TO = 10.0  # Å
POINT = ["mass", "snr", "noise", "split"]
FACTORS = ("prior", "extent", "padding", "subtraction", "regularisation")
SIGNS = ("replicates", "precision", "half_maps")
BOUND_PARTICLES = 64
PUBLISHED = (  # kDa, from, to; sources in README.md
    (100.0, 150.0, "100 to 150: RELION's\nrule for a mask\n100: Henderson 1995,\nin theory"),
    (38.0, 43.0, "38: his least, as cited\n39 to 43: smallest\ncomplexes solved"),
)


# ---- what the runs left ----


@dataclass(frozen=True)
class Run:
    """One run: the point it is of, its summary, findings and the moves of its particles."""

    point: dict[str, float]
    choices: dict[str, str | float]
    summary: Mapping[str, float]
    findings: frozenset[str]
    turns: torch.Tensor  # (n, 3) rotation vectors since the start, rad, map frame
    config: Mapping[str, object]


def read_run(folder: Path) -> Run:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    data, search = config["data"], config["search"]
    poses = pd.read_csv(folder / "poses.csv", usecols=["turn_x", "turn_y", "turn_z"])
    findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    return Run(
        point={
            "mass": data["head_mass"], "snr": data["snr"], "noise": data["simulation_seed"],
            "split": config["seed"],
        },
        choices={
            "prior": "none" if search["rotation_prior"] is None else "prior",
            "extent": search["rotation_extent"], "padding": config["mask"]["soft_padding_width"],
            "subtraction": config["subtraction"]["kind"],
            "regularisation": config["refinement"]["regularisation"],
        },
        summary=json.loads((folder / "summary.json").read_text(encoding="utf-8")),
        findings=frozenset(each["code"] for each in findings if each["level"] != "info"),
        turns=torch.deg2rad(torch.tensor(poses.to_numpy(), dtype=torch.float64)),
        config=config,
    )  # fmt: skip


def read_runs(sweeps: Iterable[Path]) -> list[Run]:
    """All finished runs under sweep folders.

    Raises:
        ValueError: there are none.
    """
    folders = sorted(path.parent for sweep in sweeps for path in sweep.glob("*/summary.json"))
    if not folders:
        raise ValueError("no finished runs there: give the folders that `cryosweep run` named, sweep_...")
    return [read_run(folder) for folder in folders]


def outcome(summary: Mapping[str, float]) -> str:
    """`aligned`, `placed` or `no`, by the truth."""
    placed = summary["truth/shift_error_median"] < 0.5 * summary["start/shift_error_median"]
    turned = summary["truth/rotation_error_median"] < 0.5 * summary["start/rotation_error_median"]
    if placed and turned and summary["truth/resolution_05"] <= RIGHT_TO:
        return "aligned"
    return "placed" if placed else "no"


def unmoved_sd(config: Mapping[str, object]) -> float:
    """Degrees per axis that prior and extents alone leave a rotation uncertain by."""
    search = config["search"]
    assert isinstance(search, Mapping)
    spread = ExtentShape(search["extent_shape"]).spread(search["rotation_extent"], 3)
    prior = search["rotation_prior"]
    return spread if prior is None else (spread**-2 + prior**-2) ** -0.5


def disagreement(first: torch.Tensor, second: torch.Tensor) -> float:
    """Median angle (degrees) between two sets of turns (n, 3) of the same particles, less a common turn."""
    relative = rotation_from_vector(first).mT @ rotation_from_vector(second)
    return float(torch.rad2deg(angle_between(mean_rotation(relative), relative)).median())


def signs(run: Run, replicate: Run | None) -> dict[str, bool]:
    """What speaks for the poses without the truth; `replicates` only where there is one."""
    found = {
        "precision": run.summary["pose/rotation_sd_median"] < 0.5 * unmoved_sd(run.config),
        "half_maps": run.summary["resolution/own_corrected_0143"] <= RIGHT_TO,
        "R13": "R13" not in run.findings,
        "R14": "R14" not in run.findings,
    }
    if replicate is not None:
        moved = min(each.summary["pose/rotation_change_median"] for each in (run, replicate))
        found["replicates"] = disagreement(run.turns, replicate.turns) < 0.5 * moved
    return found


def table_of(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: its point and choices, what the truth says, and what can be seen without it."""
    by_key = {(*run.point.values(), *run.choices.values()): run for run in runs}
    rows: list[dict[str, object]] = []
    for run in runs:
        others = [
            by_key.get((*(run.point | {"split": split}).values(), *run.choices.values()))
            for split in sorted({each.point["split"] for each in runs} - {run.point["split"]})
        ]
        replicate = next((other for other in others if other is not None), None)
        found = signs(run, replicate)
        seen = run.summary
        rows.append({
            **run.point, **run.choices, "particles": len(run.turns), "outcome": outcome(seen),
            "rotation_error": seen["truth/rotation_error_median"],
            "start_rotation_error": seen["start/rotation_error_median"],
            "shift_error": seen["truth/shift_error_median"],
            "start_shift_error": seen["start/shift_error_median"],
            "right_to": seen["truth/resolution_05"], "start_right_to": seen["start/truth_resolution_05"],
            "truth_area": seen["truth/fsc_area"], "start_truth_area": seen["start/truth_fsc_area"],
            "half_maps_to": seen["resolution/own_corrected_0143"],
            "rotation_sd": seen["pose/rotation_sd_median"], "unmoved_sd": unmoved_sd(run.config),
            "change": seen["pose/rotation_change_median"],
            "differ": math.nan if replicate is None else disagreement(run.turns, replicate.turns),
            "held_out": seen["score/held_out_likelihood"], "cpu_seconds": seen["cpu_seconds"],
            **found,
            "taken": all(found.get(sign, False) for sign in SIGNS),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values(POINT, ascending=[False, True, True, True], ignore_index=True)


def judged(table: pd.DataFrame, sign: str) -> dict[str, int]:
    """How often a sign is right about `aligned`: right, false alarms (it says so, the truth not), misses."""
    said, true = table[sign].astype(bool), table["outcome"] == "aligned"
    return {
        "right": int((said == true).sum()),
        "false": int((said & ~true).sum()),
        "missed": int((~said & true).sum()),
        "of": len(table),
    }


def effects(table: pd.DataFrame, factor: str, score: str, *, base: str | float) -> tuple[str, np.ndarray]:
    """The other level of a factor, and how a score changes from level `base` to it, all else equal.

    Raises:
        ValueError: the factor has not two levels, `base` one of them.
    """
    rest = [*POINT, *(name for name in FACTORS if name != factor)]
    wide = table.pivot_table(index=rest, columns=factor, values=score)
    levels = list(wide.columns)
    if len(levels) != 2 or base not in levels:
        raise ValueError(f"{factor} has levels {levels}, and an effect needs two, one of them {base}")
    other = next(level for level in levels if level != base)
    name = f"{other:g}" if isinstance(other, float | int) else str(other)
    return name, (wide[other] - wide[base]).dropna().to_numpy()


# ---- what the images could tell ----


@dataclass(frozen=True)
class Information:
    """At SNR 1, for each of some particles of one mass: curvature (n, 5, 5) and energy (n,), and a space."""

    curvature: torch.Tensor
    energy: torch.Tensor
    poses: Poses
    space: SearchSpace

    def at(self, snr: float) -> dict[str, float]:
        """Medians over the particles: energy, ln N, least posterior SD and error (degrees)."""
        prior = prior_quadratic(self.poses, self.poses, self.space).curvature
        nothing = posterior_covariance(prior, self.poses, self.space)
        least = posterior_covariance(self.curvature * snr + prior, self.poses, self.space)
        told = 0.5 * (torch.logdet(nothing) - torch.logdet(least))
        rotation = least[:, :3, :3]
        generator = torch.Generator().manual_seed(0)
        draws = torch.linalg.cholesky(rotation) @ torch.randn(
            len(rotation), 3, 64, generator=generator, dtype=torch.float64
        )
        variance = torch.diagonal(rotation, dim1=-2, dim2=-1).mean(dim=-1)
        bare = torch.linalg.pinv(self.curvature.double() * snr)
        crlb = torch.diagonal(bare, dim1=-2, dim2=-1)[:, :3].mean(dim=-1)
        return {
            "energy": snr * float(self.energy.median()),
            "ln_n": float(told.median()),
            "least_sd": math.degrees(float(variance.sqrt().median())),
            "crlb_sd": math.degrees(float(crlb.sqrt().median())),
            "least_error": math.degrees(float(draws.norm(dim=1).median())),
        }

    def enough(self) -> float:
        """SNR from which the energy exceeds 4 ln N, by bisection; E grows faster than ln N."""
        low, high = 1e-3, 1e3
        for _ in range(40):
            middle = math.sqrt(low * high)
            found = self.at(middle)
            low, high = (low, middle) if found["energy"] > 4.0 * found["ln_n"] else (middle, high)
        return math.sqrt(low * high)


def information(config: Mapping[str, object], *, particles: int) -> Information:
    """What images of the moving head tell about its pose, all else subtracted and the reference known."""
    data, search = config["data"], config["search"]
    assert isinstance(data, Mapping)
    assert isinstance(search, Mapping)
    shared = SimulationSettings.__dataclass_fields__.keys() & data.keys() - {"particles", "snr"}
    settings = SimulationSettings(
        particles=particles, snr=1.0, seed=7, **{name: data[name] for name in shared}
    )
    box, pixel = settings.box_size, settings.pixel_size
    structure = load_ribosome(settings.head_mass)
    domain, hinge = structure.domains["head"], structure.hinges["head"]
    centre = domain.centre_of_mass
    plane = half_plane(box, dtype=torch.float32, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        variance = simulate(settings, folder, device="cpu").noise_variance
        optics = read_particles(folder / "particles.star").optics
        true = load_truth(folder).domains["head"].poses
    volume = render_domain(domain.coordinates, domain.weights, box_size=box, pixel_size=pixel, centre=centre)
    reference = make_reference(volume.float())
    landing = (true.shifts + (true.rotations @ centre)[:, :2]) / pixel
    poses = Poses(true.rotations.float(), landing.float())
    x, y = (plane.k[:, axis].long() for axis in (0, 1))
    noise = (box**2 * variance * noise_power(box, pixel)[y % box, x]).float()
    transfer = contrast_transfer(optics, plane.k.double() / (box * pixel)).float()
    weights = transfer.square() / noise
    model = slices(reference, poses.rotations, plane)
    images = model * weights * shift_phase(plane, poses.shifts_px)
    found = log_likelihood_quadratic(
        reference, plane, images=images, weights=weights, rotations=poses.rotations,
        shifts_px=poses.shifts_px,
    )  # fmt: skip
    prior, shift_prior = search["rotation_prior"], search["shift_prior"]
    space = SearchSpace(
        rotation_extent=math.radians(search["rotation_extent"]),
        shift_extent_px=search["shift_extent"] / pixel,
        rotation_prior=None if prior is None else math.radians(prior),
        shift_prior_px=None if shift_prior is None else shift_prior / pixel,
        lever_px=((centre - hinge) / pixel).float(),
        shape=ExtentShape(search["extent_shape"]),
    )
    energy = (weights * model.abs().square()).sum(dim=1)
    return Information(found.curvature, energy, poses, space)


# ---- figure ----

SHADES = {"aligned": "#0072b2", "placed": "#9ecae1", "no": "white"}
MEANING = {
    "aligned": "aligned: shift and rotation error halved, right to 10 Å",
    "placed": "placed: only the shift error halved",
    "no": "neither",
}


def draw_frontier(axes: Axes, table: pd.DataFrame, more: pd.DataFrame, enough: Mapping[float, float]) -> None:
    """Mass against SNR: a mark a run, filled by outcome, ringed where the verdict without truth is wrong.

    Runs with more particles have squares and no verdict.
    """
    for _, group in table.groupby(["mass", "snr"]):
        for place, (_, row) in enumerate(group.iterrows()):
            x = row["snr"] * 1.09 ** (place - (len(group) - 1) / 2)
            wrong = bool(row["taken"]) != (row["outcome"] == "aligned")
            axes.plot(
                x, row["mass"], "o", ms=8, mfc=SHADES[str(row["outcome"])],
                mec="#d55e00" if wrong else "black", mew=2.2 if wrong else 0.7, zorder=3,
            )  # fmt: skip
    for _, row in more.iterrows():
        shade = SHADES[str(row["outcome"])]
        axes.plot(1.36 * row["snr"], row["mass"], "s", ms=8, mfc=shade, mec="black", mew=0.7, zorder=3)
    masses = sorted(enough)
    axes.plot([enough[mass] for mass in masses], masses, "-", color="#555555", lw=1.5, zorder=2)
    snrs = sorted(table["snr"].unique())
    for low, high, text in PUBLISHED:
        axes.axhspan(low, high, color="#009e73", alpha=0.13, lw=0, zorder=0)
        place = (1.4 * snrs[-1], math.sqrt(low * high))
        axes.annotate(text, place, va="center", fontsize=7, color="#00543f")
    axes.set(xscale="log", yscale="log", xlabel="SNR of the images (whole particle)",
             ylabel="mass of the moving domain (kDa)", xlim=(0.75 * snrs[0], 6 * snrs[-1]))  # fmt: skip
    axes.set_xticks(snrs, [f"{value:g}" for value in snrs])
    axes.set_yticks(list(enough), [f"{value:g}" for value in enough])
    axes.minorticks_off()
    marks = [
        Line2D([], [], ls="", marker="o", ms=8, mfc=shade, mec="black", mew=0.7, label=MEANING[name])
        for name, shade in SHADES.items()
    ]
    marks.append(Line2D([], [], ls="", marker="o", ms=8, mfc="white", mec="#d55e00", mew=2.2,
                        label="the verdict without the truth is wrong"))  # fmt: skip
    if len(more):
        text = f"{more['particles'].max()} particles in place of {table['particles'].max()}"
        marks.append(Line2D([], [], ls="", marker="s", ms=8, mfc="white", mec="black", mew=0.7, label=text))
    marks.append(
        Line2D([], [], color="#555555", lw=1.5, label="signal energy = 4 ln N: more of it to the right")
    )
    marks.append(Line2D([], [], color="#009e73", lw=7, alpha=0.2, label="published limits, real images"))
    axes.legend(handles=marks, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    axes.set_title("Which domains were aligned", fontsize=10)


def draw_widths(axes: Axes, table: pd.DataFrame, least: Mapping[tuple[float, float], float]) -> None:
    """Median rotation error over the least that the images and the prior allow, by mass."""
    snrs = sorted(table["snr"].unique())
    shades = ("#cc79a7", "#d55e00", "#e69f00", "#0072b2")
    for snr, shade in zip(snrs, itertools.cycle(shades), strict=False):
        rows = table[table["snr"] == snr].groupby("mass")["rotation_error"].mean()
        axes.plot(rows.index, rows, "o-", color=shade, ms=5, lw=1.2, label=f"SNR {snr:g}")
        bound = [least[mass, snr] for mass in rows.index]
        axes.plot(rows.index, bound, "--", color=shade, lw=1)
    axes.axhline(table["start_rotation_error"].mean(), color="black", lw=0.8, ls=":")
    axes.annotate("start", (table["mass"].max(), table["start_rotation_error"].mean()), ha="right",
                  va="bottom", fontsize=8)  # fmt: skip
    axes.set(
        xscale="log",
        xlabel="mass of the moving domain (kDa)",
        ylabel="median rotation error (°)",
        ylim=(0, None),
    )
    masses = sorted(table["mass"].unique())
    axes.set_xticks(masses, [f"{mass:g}" for mass in masses])
    axes.minorticks_off()
    handles, _ = axes.get_legend_handles_labels()
    handles.append(
        Line2D([], [], color="black", ls="--", lw=1, label="least possible: true reference, prior")
    )
    axes.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    axes.set_title("Why: the poses an image can tell", fontsize=10)


def draw_effects(axes: Axes, changes: Mapping[str, np.ndarray], title: str) -> None:
    """Change of the rotation error by each choice at the limit, a dot for each pair of runs."""
    names = list(changes)
    for place, name in enumerate(names):
        values = np.sort(changes[name])
        jitter = 0.22 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(values, place + jitter, ".", color="#0072b2", ms=4, alpha=0.6)
        axes.plot([values.mean()] * 2, [place - 0.35, place + 0.35], color="black", lw=2)
    axes.axvline(0, color="#555555", lw=0.8)
    axes.set_yticks(range(len(names)), [name.replace(": ", ":\n") for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="change of the median rotation error (°)")
    axes.annotate("better", (0.02, 1.01), xycoords="axes fraction", fontsize=8, ha="left", va="bottom")
    axes.annotate("worse", (0.98, 1.01), xycoords="axes fraction", fontsize=8, ha="right", va="bottom")
    axes.set_title(title, fontsize=10, pad=14)


# ---- report ----


def markdown(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def averages(group: pd.DataFrame, form: Callable[[float], str], *names: str) -> list[str]:
    return [form(float(group[name].mean())) for name in names]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0],
        epilog="example: python experiments/small_domains/analyse.py cryosweep_out/small_domains/sweep_*",
    )
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders of sweeps of small_domains")
    parser.add_argument("--limit", nargs="+", type=Path, default=[], help="... of small_domains_limit")
    parser.add_argument("--more", nargs="+", type=Path, default=[], help="... with more particles")
    parser.add_argument(
        "--figure", type=Path, default=Path("small_domains.png"), help="(default: %(default)s)"
    )
    parser.add_argument("--table", type=Path, help="CSV with one row a run")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)

    runs = read_runs(arguments.sweeps)
    frontier = table_of(runs)
    limit = table_of(read_runs(arguments.limit)) if arguments.limit else frontier.iloc[:0]
    more = table_of(read_runs(arguments.more)) if arguments.more else frontier.iloc[:0]
    everything = pd.concat([frontier, more, limit])
    if arguments.table is not None:
        everything.round(4).to_csv(arguments.table, index=False)

    config = {run.point["mass"]: run.config for run in runs}
    known = {
        mass: information(config[mass], particles=BOUND_PARTICLES)
        for mass in sorted(frontier["mass"].unique(), reverse=True)
    }
    enough = {mass: found.enough() for mass, found in known.items()}
    told = {(m, s): known[m].at(s) for m, s in itertools.product(known, sorted(frontier["snr"].unique()))}

    print(f"{len(frontier)} runs at the frontier, {len(more)} of more particles, {len(limit)} at the limit; "
          f"{everything['cpu_seconds'].sum() / 60:.0f} CPU minutes\n")  # fmt: skip
    rows: list[list[object]] = []
    for (mass, snr), group in frontier.groupby(["mass", "snr"], sort=False):
        here = told[mass, snr]
        counts = group["outcome"].value_counts()
        rows.append([
            f"{mass:g}", f"{snr:g}", f"{here['energy']:.1f}", f"{4 * here['ln_n']:.1f}",
            ", ".join(f"{counts[name]} {name}" for name in SHADES if name in counts),
            f"{int(group['taken'].sum())} of {len(group)}",
            *averages(group, "{:.1f}".format, "rotation_error"), f"{here['least_error']:.1f}",
            *averages(group, "{:.1f}".format, "rotation_sd"), f"{here['least_sd']:.1f}",
            *averages(group, "{:.1f}".format, "differ", "shift_error", "right_to", "half_maps_to"),
        ])  # fmt: skip
    print(markdown(rows, (
        "kDa", "SNR", "E", "4 ln N", "by the truth", "taken as aligned", "rotation error (°)", "least",
        "posterior SD (°)", "least", "splits differ (°)", "shift error (Å)", "right to (Å)",
        "half maps to (Å)",
    )), end="\n\n")  # fmt: skip

    if len(more):
        names = ("mass", "snr", "particles", "outcome", "rotation_error", "shift_error", "right_to")
        rows = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
                for row in more[list(names)].to_numpy()]  # fmt: skip
        print(markdown(rows, names), end="\n\n")

    scores = [[sign, *judged(frontier, sign).values()] for sign in (*SIGNS, "taken", "R13", "R14")]
    print(markdown(scores, ("sign", "right", "false alarms", "misses", "of")), end="\n\n")
    print(
        "SNR at which E = 4 ln N: " + ", ".join(f"{m:g} kDa {s:.3f}" for m, s in enough.items()), end="\n\n"
    )

    changes: dict[str, np.ndarray] = {}
    found: list[list[object]] = []
    for factor in FACTORS if len(limit) else ():
        base = frontier[factor].iloc[0]
        other, turned = effects(limit, factor, "rotation_error", base=base)
        _, area = effects(limit, factor, "truth_area", base=base)
        _, moved = effects(limit, factor, "shift_error", base=base)
        name = f"{factor}: {base:g} to {other}" if isinstance(base, float) else f"{factor}: {base} to {other}"
        changes[name] = turned
        found.append([
            name, f"{turned.mean():+.2f} ({int((turned < 0).sum())} of {len(turned)} better)",
            f"{moved.mean():+.2f}", f"{area.mean():+.3f} ({int((area > 0).sum())} of {len(area)} better)",
        ])  # fmt: skip
    if found:
        print(markdown(found, ("choice", "rotation error (°)", "shift error (Å)", "truth FSC area")))

    figure = Figure(figsize=(13.5 if changes else 9.5, 5.6), layout="constrained")
    axes = figure.subplots(1, 3 if changes else 2)
    draw_frontier(axes[0], frontier, more, enough)
    draw_widths(axes[1], frontier, {key: here["least_error"] for key, here in told.items()})
    if changes:
        mass, snr = limit[["mass", "snr"]].iloc[0]
        draw_effects(axes[2], changes, f"What moves the limit: {mass:g} kDa, SNR {snr:g}")
    figure.savefig(arguments.figure, dpi=80)


if __name__ == "__main__":
    main()
