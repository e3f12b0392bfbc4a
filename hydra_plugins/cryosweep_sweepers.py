"""The sweepers of cryosweep, where Hydra looks for plugins; what they do is in `cryosweep.study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cryosweep.study import proposals
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
        with_sweeps: for the callback of the sweep.
        centre: for the callback of the sweep.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        points: Sequence[Mapping[str, object]] | None = None,
        only_if: Mapping[str, object] | None = None,
        params: Mapping[str, str] | None = None,
        with_sweeps: Sequence[str] | None = None,
        centre: Mapping[str, object] | None = None,
    ) -> None:
        del with_sweeps, centre
        super().__init__(max_batch_size, dict(params or {}))
        self._axes = {"points": _plain(points), "only_if": _plain(only_if)}

    def split_arguments(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The points, as batches of overrides; `overrides` are those of `params` and of the task, parsed."""
        lines = [override.input_line or "" for override in overrides]
        jobs = [list(point) for point in expand(read_axes(self._axes, lines)).points]
        return [list(batch) for batch in self.split_overrides_to_chunks(jobs, max_batch_size)]


class OptunaSweeper(Sweeper):
    """Batches of points that Optuna proposes: `hydra/sweeper=optuna`.

    Args:
        settings: the keys of `conf/hydra/sweeper/optuna.yaml`, which explains them.
    """

    def __init__(self, **settings: Any) -> None:
        self._sweeper = {key: _plain(value) for key, value in settings.items()}
        self._launcher: Launcher | None = None
        self._config = DictConfig({})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context = hydra_context
        self.config = config
        self._config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Propose, run and tell until the study is complete; every trial ends in `trials.csv`."""
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")
        axes, settings = proposals.read_search(self._sweeper, arguments)
        space = proposals.read_space(axes, settings)
        started = 0

        def run(jobs: list[list[str]]) -> proposals.Results:
            nonlocal started
            assert self._launcher is not None
            self.validate_batch_is_legal(jobs)
            returns = self._launcher.launch(jobs, initial_job_idx=started)
            started += len(jobs)
            return [each.return_value for each in returns]

        study = proposals.optimise(space, settings, folder.parent / proposals.JOURNAL, run)
        proposals.write_trials(study, folder)
