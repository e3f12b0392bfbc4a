"""The sweepers of cryosweep, where Hydra looks for plugins; what they do is in `cryosweep.study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from cryosweep.study.points import expand, read_axes


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


class PointSweeper(BasicSweeper):
    """Hydra's own sweeper with other points: `hydra/sweeper=cryosweep`, the default.

    Args:
        max_batch_size: jobs handed to the launcher at once; None for all.
        points: listed points.
        only_if: conditions of keys.
        params: the grid; of a key that is overridden as well the override counts.
        with_sweeps: read by the callback of the sweep.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        points: Sequence[Mapping[str, object]] | None = None,
        only_if: Mapping[str, object] | None = None,
        params: Mapping[str, str] | None = None,
        with_sweeps: Sequence[str] | None = None,
    ) -> None:
        del with_sweeps
        super().__init__(max_batch_size, dict(params or {}))
        self._axes = {"points": _plain(points), "only_if": _plain(only_if)}

    def split_arguments(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The points, as batches of overrides; `overrides` are those of `params` and of the task, parsed."""
        lines = [override.input_line or "" for override in overrides]
        jobs = [list(point) for point in expand(read_axes(self._axes, lines)).points]
        return [list(batch) for batch in self.split_overrides_to_chunks(jobs, max_batch_size)]
