"""Which results of stages are worth keeping: CPU seconds to make one beside those to read and verify it.

    OMP_NUM_THREADS=1 python benchmarks/stages.py --boxes 96 192

One thread. A map is read with the digests that a stage costs: of its source, for the key, and of its file,
which is checked once in a process. The map is a noisy ball; only its size matters.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cryosweep.fourier import gaussian_filter
from cryosweep.io.maps import read_map, write_map
from cryosweep.mask import soft_mask, spherical_mask
from cryosweep.segmentation import segment
from cryosweep.study.store import digest_file, digest_values


def cpu_seconds(action: Callable[[], object]) -> float:
    """Of the second of two calls."""
    action()
    began = time.process_time()
    action()
    return time.process_time() - began


def measured(box: int, file: Path) -> dict[str, float]:
    """Seconds of each action in one box."""
    ball = spherical_mask(box, outer_px=0.2 * box, inner_px=0.15 * box, device="cpu")
    noise = torch.randn(box, box, box, generator=torch.Generator().manual_seed(0))
    base = gaussian_filter(ball * (1.0 + noise), sigma=4.0, pixel_size=1.0)
    top = float(base.max())

    def cut() -> Tensor:
        return soft_mask(base, threshold=0.3 * top, dilation_radius_px=2.0, soft_padding_width_px=6.0)

    write_map(file, cut(), pixel_size=1.0)

    def read() -> None:
        digest_values(base.numpy())
        digest_file(file)
        read_map(file)

    actions: dict[str, Callable[[], object]] = {
        "smoothing": lambda: gaussian_filter(base, sigma=4.0, pixel_size=1.0),
        "cutting a mask": cut,
        "watershed and groups": lambda: segment(base, threshold=0.2 * top, steps=4, step_px=1.0, target=10),
        "reading and verifying": read,
    }
    return {name: cpu_seconds(action) for name, action in actions.items()}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs="+", default=[96, 192, 384])
    boxes = parser.parse_args().boxes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        columns = [measured(box, Path(scratch) / "map.mrc") for box in boxes]
    print(f"{'CPU s':<24}" + "".join(f"{box:>10}" for box in boxes))
    for name in columns[0]:
        print(f"{name:<24}" + "".join(f"{column[name]:>10.3f}" for column in columns))


if __name__ == "__main__":
    main()
