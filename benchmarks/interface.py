"""Is the fulcrum at the interface the hinge, and can it be told without knowing the hinge?

    OMP_NUM_THREADS=1 python benchmarks/interface.py FOLDER              # 3 domains, 6 sets, 6 thresholds
    OMP_NUM_THREADS=1 python benchmarks/interface.py FOLDER --held-out   # heads of less mass, other seeds

For simulated particles: the contact of each domain with its carrier as `fulcrum=interface` takes it, in the
starting maps. Printed for each domain and pixel size, least, median and largest over data sets and
thresholds: the distance of the fulcrum from the true hinge (Å), and measures that need no truth. `move`: how
far the point moves from that at threshold 0.15; `share`: volume of the contact over that of the domain;
`spread`: root mean square distance of the contact from its centre over the domain's radius of gyration;
`along`: the part of it on the line from the domain's centre to the contact's (rule R30); `first axis`:
longest SD of the contact over the longest of the domain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

from cryosweep.composition import make_plan
from cryosweep.fulcrum import contact_radius, interface
from cryosweep.job.data import load_data
from cryosweep.job.masks import mask_base, smoothed_consensus
from cryosweep.job.starting import starting_maps
from cryosweep.mask import dilate, threshold_of
from cryosweep.progress import LogProgress
from cryosweep.study.store import Store

CPU = torch.device("cpu")
COARSE = ("data.particles=400", "data.box_size=64", "data.pixel_size=5.25", "data.snr=0.2")
STILL = tuple(f"data.rotation_spread.{name}=1" for name in ("head", "foot", "arm"))
WILD = ("data.rotation_spread.head=12", "data.rotation_spread.foot=6", "data.rotation_spread.arm=10")
DATA = {
    "usual, seed 0": COARSE,
    "usual, seed 1": (*COARSE, "data.simulation_seed=1"),
    "noisy": (*COARSE, "data.snr=0.05", "data.simulation_seed=2"),
    "hardly moving": (*COARSE, *STILL, "data.simulation_seed=3"),
    "moving widely": (*COARSE, *WILD, "data.simulation_seed=4"),
    "fine": ("data.particles=800",),
}
HELD_OUT = {
    f"head of {mass} kDa": (*COARSE, f"data.head_mass={mass}", f"data.simulation_seed={10 + number}")
    for number, mass in enumerate((40, 80, 120, 160, 200, 240))
}
THRESHOLDS = (0.06, 0.1, 0.15, 0.2, 0.3, 0.5)


def measured(name: str, overrides: tuple[str, ...], store: Store) -> list[dict[str, object]]:
    """One row a threshold for a domain of one data set."""
    (job,) = make_plan([*overrides, f"mask_base.name={name}"], multirun=False).jobs
    data = load_data(job, store, CPU, LogProgress())
    start = starting_maps(job, data, store, CPU, LogProgress())
    base = mask_base(job, data, start, CPU, store)
    assert base is not None
    assert data.truth is not None
    pixel_size = data.particles.pixel_size
    dense, others = smoothed_consensus(job, data, start), [each for each in data.truth.names if each != name]
    points: dict[float, torch.Tensor] = {}
    rows: list[dict[str, object]] = []
    for level in THRESHOLDS:
        threshold = threshold_of(base, level, unit="fraction")
        domain = base > threshold
        parts = [(dense > threshold) & data.truth.territory(each) for each in others]
        found = interface(domain, parts, names=others, pixel_size=pixel_size)
        points[level] = found.contact.centre
        reach = contact_radius(pixel_size) / pixel_size * (1.0 + 1e-6)
        near = dilate(domain, reach) & dilate(parts[found.carrier], reach)
        ours, theirs = (torch.cov(torch.nonzero(each).double().T) * pixel_size**2 for each in (domain, near))
        gyration = float(ours.trace().sqrt())
        axes = [float(torch.linalg.eigvalsh(each)[-1].sqrt()) for each in (theirs, ours)]
        rows.append(
            {
                "domain": name,
                "pixel": pixel_size,
                "threshold": level,
                "error": float((found.contact.centre - data.truth.hinges[name]).norm()),
                "share": found.contact.voxels / float(domain.sum()),
                "spread": float(theirs.trace().sqrt()) / gyration,
                "along": found.along,
                "first axis": axes[0] / axes[1],
            }
        )
    for row, point in zip(rows, points.values(), strict=True):
        row["move"] = float((point - points[0.15]).norm())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for particles and starting maps")
    parser.add_argument("--held-out", action="store_true", help="heads of less mass")
    parser.add_argument("--rows", type=Path, help="CSV to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(given.folder)
    rows: list[dict[str, object]] = []
    for label, overrides in (HELD_OUT if given.held_out else DATA).items():
        for name in ("head",) if given.held_out else ("head", "foot", "arm"):
            told = {"data": label} | ({"domain": label} if given.held_out else {})
            rows += [row | told for row in measured(name, overrides, store)]
    table = pd.DataFrame(rows)
    if given.rows is not None:
        table.to_csv(given.rows, index=False, float_format="%.4f")
    names = ["error", "move", "share", "spread", "first axis", "along"]
    grouped = table.groupby(["domain", "pixel"], sort=False)[names].agg(["min", "median", "max"])
    for name in names:
        print(f"\n{name}\n{grouped[name].round(2).to_string()}")


if __name__ == "__main__":
    main()
