"""What a subtraction leaves of the neighbours, and what it does for a local refinement, truth known.

    OMP_NUM_THREADS=1 python benchmarks/subtraction.py --domains head foot arm --seeds 0 1
    OMP_NUM_THREADS=1 python benchmarks/subtraction.py --domains head foot --seeds 0 --refine

Simulates the embedded ribosome (1,200 particles of 96 px, SNR 0.1, consensus poses with error) and takes
everything but one domain out of its images, at the consensus poses.

* images: the power of the neighbours, rendered at their true poses, that is left in every third image, over
  what was there, in all and by band; what a half-map carries into the image as noise counts as left. Kept
  are the region of the domain with a narrow edge (4 Å), the mask that scores (0 / 10 Å) or the one that
  aligns (7 / 16 Å); the half-maps are weighted by their FSC, by its root, or not at all.
* `--refine`: three iterations on the images as they are, on those subtractions, and on images from which the
  true neighbours were taken, which is as much as a subtraction can do.

Each line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane, gaussian_filter, half_plane, images_of_spectrum, spectrum_of_images
from cryosweep.io import read_particles
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
from cryosweep.projector import Reference, make_reference
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps, weigh_shells
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.resolution import fsc
from cryosweep.simulate import (
    DOMAINS,
    SimulationSettings,
    Truth,
    load_ribosome,
    load_truth,
    render_domain,
    simulate,
)
from cryosweep.study.assessment import make_ruler, masked_fsc, score_against_truth
from cryosweep.subtraction import Rest, projected, subtracted

CPU = torch.device("cpu")
BOX_SIZE, PIXEL_SIZE = 96, 3.5
BANDS = ((1, 10), (11, 20), (21, 34), (35, 47))  # shells: to 34, 17, 10 and 7 Å
KEPT = {"region 0/4": (0.0, 4.0), "scoring 0/10": (0.0, 10.0), "aligning 7/16": (7.0, 16.0)}
POWERS = {"none": 0.0, "root": 0.5, "fsc": 1.0}  # of the FSC
EXTENTS = {"head": (20.0, 10.0, None, None), "foot": (10.0, 6.0, None, None), "arm": (20.0, 10.0, 7.0, 3.5)}


@dataclass(frozen=True)
class Neighbours:
    """The domains other than one: references about their centres, and particles at their true poses."""

    particles: tuple[Particles, ...]
    references: tuple[Reference, ...]
    plane: HalfPlane

    def spectra(self, rows: Tensor) -> Tensor:
        """(b, K) transform of the neighbours in the images of `rows`."""
        parts = zip(self.particles, self.references, strict=True)
        return torch.stack([projected(each, part, rows, self.plane) for each, part in parts]).sum(dim=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class WithoutTruth(Particles):
    """Particles from whose images the true neighbours are taken."""

    neighbours: Neighbours

    def images(self, index: Tensor) -> Tensor:
        """Images at `index` (b,) with the domain and the noise alone."""
        spectra = self.neighbours.spectra(index)
        return super().images(index) - images_of_spectrum(spectra, self.neighbours.plane)


def neighbours_of(domain: str, folder: Path) -> Neighbours:
    """Every other domain, rendered about its own centre of mass."""
    structure = load_ribosome()
    others = [structure.domains[name] for name in DOMAINS if name != domain]
    particles: list[Particles] = []
    references: list[Reference] = []
    for other in others:
        centre = other.centre_of_mass
        volume = render_domain(
            other.coordinates, other.weights, box_size=BOX_SIZE, pixel_size=PIXEL_SIZE, centre=centre
        )
        references.append(make_reference(volume.float()))
        true = read_particles(folder / f"truth_{other.name}.star")
        own = {field.name: getattr(true, field.name) for field in fields(Particles)}
        own["shifts"] = true.shifts + (true.rotations @ centre)[:, :2]
        particles.append(Particles(**own))
    plane = half_plane(BOX_SIZE, dtype=torch.float32, device=CPU)
    return Neighbours(tuple(particles), tuple(references), plane)


@dataclass(frozen=True)
class Scene:
    """Simulated particles, their half-maps, and the masks about one domain."""

    domain: str
    seed: int
    particles: Particles
    truth: Truth
    start: HalfMaps
    region: Tensor
    around: Tensor
    neighbours: Neighbours

    def kept(self, name: str) -> Tensor:
        """The mask of what is kept."""
        dilation, width = KEPT[name]
        return cut(self.region, dilation, width)

    def rest(self, kept: str, power: float) -> Rest:
        """What is removed, weighted by a power of the FSC."""
        removed = cut(self.around, 0.0, 14.0) * (1.0 - self.kept(kept))
        weights = fsc(*(half * removed for half in self.start.pair)).clamp(0.0, 1.0) ** power
        a, b = (weigh_shells(half, weights) * removed for half in self.start.pair)
        return Rest(HalfMaps(a, b, PIXEL_SIZE), removed, None)


def cut(base: Tensor, dilation: float, width: float) -> Tensor:
    """Soft mask of a base where it exceeds 0.15 of its 99.9th percentile; lengths in Å."""
    return soft_mask(
        base, threshold=threshold_of(base, 0.15, unit="fraction"), dilation_radius_px=dilation / PIXEL_SIZE,
        soft_padding_width_px=width / PIXEL_SIZE,
    )  # fmt: skip


def make_scenes(domains: list[str], seed: int, folder: Path) -> list[Scene]:
    settings = SimulationSettings(
        particles=1200, box_size=BOX_SIZE, pixel_size=PIXEL_SIZE, snr=0.1, seed=seed
    )
    data = simulate(settings, folder, device=CPU)
    particles, truth = read_particles(data.particles), load_truth(folder)
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    mean = gaussian_filter(0.5 * (start.half_a + start.half_b), sigma=4.0, pixel_size=PIXEL_SIZE)
    scenes: list[Scene] = []
    for domain in domains:
        own = truth.labels == 1 + DOMAINS.index(domain)
        scenes.append(
            Scene(
                domain, seed, particles, truth, start, mean * own, mean * ~own, neighbours_of(domain, folder)
            )
        )
    return scenes


def left_in_images(scene: Scene) -> list[dict[str, object]]:
    """Power left of the neighbours, by what is kept and by filter."""
    rows = torch.arange(0, len(scene.particles), 3)
    plane = scene.neighbours.plane
    there = scene.neighbours.spectra(rows)
    stored = spectrum_of_images(scene.particles.images(rows), plane)
    found: list[dict[str, object]] = []
    for kept in KEPT:
        for name, power in POWERS.items():
            lacking = subtracted(scene.particles, scene.rest(kept, power), device=CPU)
            left = there - (stored - spectrum_of_images(lacking.images(rows), plane))
            bands = [share(left, there, (plane.shell >= low) & (plane.shell <= high)) for low, high in BANDS]
            whole = share(left, there, plane.shell > 0)
            found.append({"kept": kept, "filter": name, "left": whole, "left_by_band": bands})
    return found


def share(part: Tensor, whole: Tensor, samples: Tensor) -> float:
    power = [float(each[:, samples].abs().square().sum()) for each in (part, whole)]
    return round(power[0] / power[1], 3)


def refined(scene: Scene) -> list[dict[str, object]]:
    """Truth and half-map scores of refinements on each kind of images."""
    own = {field.name: getattr(scene.particles, field.name) for field in fields(Particles)}
    kinds: Mapping[str, Particles] = {
        "as they are": scene.particles,
        **{kept: subtracted(scene.particles, scene.rest(kept, 1.0), device=CPU) for kept in KEPT},
        "true neighbours taken": WithoutTruth(**own, neighbours=scene.neighbours),
    }
    mask, scoring = scene.kept("aligning 7/16"), scene.kept("scoring 0/10")
    ruler = make_ruler(
        scoring, pixel_size=PIXEL_SIZE, band_low=34.0, band_high=None, randomisations=1, seed=0
    )
    extents = EXTENTS[scene.domain]
    settings = RefinementSettings(
        rotation_extent=extents[0], shift_extent=extents[1], rotation_prior=extents[2],
        shift_prior=extents[3], max_iterations=3,
    )  # fmt: skip
    found: list[dict[str, object]] = []
    for name, images in kinds.items():
        begin = reconstruct_half_maps(images, images.rotations, images.shifts, device=CPU)
        result = refine(
            images, begin, mask, fulcrum=centre_of_mass(mask) * PIXEL_SIZE, settings=settings, device=CPU
        )
        maps = reconstruct_half_maps(images, result.rotations, result.shifts, device=CPU)
        truth = score_against_truth(
            maps, result.rotations, result.shifts, domain=load_ribosome().domains[scene.domain],
            truth=scene.truth.domains[scene.domain], ruler=ruler,
        )  # fmt: skip
        scores = truth.summary(ruler, box_size=BOX_SIZE, pixel_size=PIXEL_SIZE)
        area = float(masked_fsc(maps, scoring)[ruler.first_shell : ruler.last_shell + 1].mean())
        found.append(
            {"images": name, "fsc_area": round(area, 3)} | {key: round(x, 3) for key, x in scores.items()}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", nargs="+", choices=list(EXTENTS), default=list(EXTENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--refine", action="store_true", help="refine on each kind of images instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            for scene in make_scenes(arguments.domains, seed, Path(folder)):
                for line in (refined if arguments.refine else left_in_images)(scene):
                    print(json.dumps({"domain": scene.domain, "seed": seed} | line), flush=True)


if __name__ == "__main__":
    main()
