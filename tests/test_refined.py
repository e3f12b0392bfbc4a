"""The refinement as a stage: kept whole, and after an interruption it ends as if there had been none."""

import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryosweep.consensus import DynamicMask, dynamic_mask
from cryosweep.job import refined as stage
from cryosweep.refinement import IterationRecord, PreparedImages, RefinementSettings, RefinementState, refine
from cryosweep.study.store import Store
from tests.test_refinement import CPU, DOMAIN_CENTRE, PIXEL, make_scene

SETTINGS = RefinementSettings(
    max_iterations=4, initial_lowpass=20.0, rotation_extent=25.0, shift_extent=6.0, audit=0.05
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_scene(tmp_path_factory.mktemp("scene"), noise=0.8, count=40)


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, but for the clock."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if is_dataclass(first):
        names = [field.name for field in fields(first) if field.name != "seconds"]
        return all(same(getattr(first, name), getattr(second, name)) for name in names)
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def local(scene: Any, settings: RefinementSettings, **more: Any) -> Any:
    return refine(
        scene.particles, scene.start, scene.mask, fulcrum=DOMAIN_CENTRE * PIXEL, settings=settings,
        device=CPU, **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["fixed", "recentred", "masked anew"])
def test_continued_from_any_iteration_it_ends_alike(scene: Any, kind: str) -> None:
    settings = replace(SETTINGS, recentre=kind == "recentred", max_iterations=3)
    more: dict[str, Any] = {}
    if kind == "masked anew":
        mask = DynamicMask(level=0.3, near=20.0, far=40.0, starts=100.0)
        more["remask"] = lambda maps, resolution: dynamic_mask(
            maps, resolution=resolution, settings=mask
        ).float()
    states: list[RefinementState] = []
    whole = local(scene, settings, on_state=states.append, **more)
    # after the last iteration there is nothing to go on with
    assert [state.iteration for state in states] == list(range(1, len(whole.records)))
    assert states
    for state in states:
        told: list[IterationRecord] = []
        assert same(local(scene, settings, resume=state, on_iteration=told.append, **more), whole)
        assert [record.iteration for record in told] == list(
            range(state.iteration + 1, len(whole.records) + 1)
        )


def test_continued_with_scales_it_ends_alike_to_rounding(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, noise=0.8, count=40, scale_spread=0.4)
    settings = replace(SETTINGS, max_iterations=3, scale=True)
    states: list[RefinementState] = []
    whole = local(scene, settings, on_state=states.append)
    assert whole.scale.std() > 0
    for state in states:
        ended = local(scene, settings, resume=state)
        assert torch.allclose(ended.scale, whole.scale, rtol=1e-4)
        assert torch.allclose(ended.rotations, whole.rotations, atol=1e-3)
        assert torch.allclose(ended.shifts, whole.shifts, atol=1e-2)


def test_scales_leave_shared_images_alone(scene: Any) -> None:
    def share(key: tuple[int, ...], prepare: Callable[[], PreparedImages]) -> PreparedImages:
        raise AssertionError("images that will be scaled are not for others")

    local(scene, replace(SETTINGS, max_iterations=1, scale=True), share=share)


def test_shared_images_change_nothing(scene: Any) -> None:
    kept: dict[tuple[int, ...], PreparedImages] = {}
    settings = replace(SETTINGS, max_iterations=1)

    def share(key: tuple[int, ...], prepare: Callable[[], PreparedImages]) -> PreparedImages:
        if key not in kept:
            kept[key] = prepare()
        return kept[key]

    whole = local(scene, settings)
    assert same(local(scene, settings, share=share), whole)
    assert len(kept) == 1
    assert same(local(scene, settings, share=share), whole)
    assert len(kept) == 1
    # another crop is another key
    local(scene, replace(settings, shift_extent=16.0), share=share)
    assert len(kept) == 2


def test_a_state_matters(scene: Any) -> None:
    """The comparison above can fail: another state ends elsewhere."""
    states: list[RefinementState] = []
    whole = local(scene, SETTINGS, on_state=states.append)
    other = replace(states[0], volumes=states[0].volumes.flip(0))
    assert not same(local(scene, SETTINGS, resume=other), whole)


def as_stage(
    scene: Any, store: Store, on_iteration: Callable[[IterationRecord], None] | None = None, **more: Any
) -> Any:
    return stage.refined(
        scene.particles, scene.start, scene.mask, fulcrum=DOMAIN_CENTRE * PIXEL, images_key="scene",
        store=store, device=CPU, memory_budget=1e9, on_iteration=on_iteration,
        **({"settings": SETTINGS} | more),
    )  # fmt: skip


def test_an_interrupted_stage_goes_on_and_leaves_no_checkpoint(
    scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    store = Store(tmp_path)
    expected = local(scene, SETTINGS)

    def interrupt(record: IterationRecord) -> None:
        if record.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        as_stage(scene, store, interrupt)
    (checkpoint,) = tmp_path.rglob(stage.CHECKPOINT)
    assert store.remnants() == [checkpoint.parent]
    told: list[int] = []
    result = as_stage(scene, store, lambda record: told.append(record.iteration))
    assert "goes on after iteration 1" in caplog.text
    assert same(result, expected)
    assert told == [record.iteration for record in expected.records]
    assert not list(tmp_path.rglob(stage.CHECKPOINT))
    # kept: nothing is refined again, whoever asks hears of every iteration
    with monkeypatch.context() as patched:
        patched.setattr(stage, "refine", pytest.fail)
        told.clear()
        assert same(as_stage(scene, store, lambda record: told.append(record.iteration)), expected)
        assert told == [record.iteration for record in expected.records]
    # other settings, other code, and an order to do it again, are other refinements
    for changes in ({"settings": replace(SETTINGS, seed=1)}, {"again": True}, {"images_key": "other"}):
        with monkeypatch.context() as patched:
            patched.setattr(stage, "refine", lambda *_, **__: pytest.fail("asked"))
            with pytest.raises(pytest.fail.Exception, match="asked"):
                stage.refined(
                    **{
                        "particles": scene.particles, "start": scene.start, "mask": scene.mask,
                        "fulcrum": DOMAIN_CENTRE * PIXEL, "images_key": "scene", "store": store,
                        "device": CPU, "memory_budget": 1e9, "settings": SETTINGS,
                    } | changes
                )  # fmt: skip
    monkeypatch.setattr(stage, "code_digest", lambda: "other code")
    monkeypatch.setattr(stage, "refine", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        as_stage(scene, store)


def test_a_damaged_checkpoint_is_said_and_not_used(
    scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, max_iterations=2)

    def interrupt(record: IterationRecord) -> None:
        if record.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        as_stage(scene, Store(tmp_path), interrupt, settings=settings)
    (checkpoint,) = tmp_path.rglob(stage.CHECKPOINT)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    result = as_stage(scene, Store(tmp_path), settings=settings)
    assert same(result, local(scene, settings))
    (line,) = [text for text in caplog.messages if "begins anew" in text]
    assert "\n" not in line
