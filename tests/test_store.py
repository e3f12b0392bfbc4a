import json
import multiprocessing
import time
from pathlib import Path

import pytest

from cryosweep.study.store import MANIFEST, Store, digest_file


def write_once(folder: Path) -> None:
    (folder / "result.txt").write_text("made")


def write_slowly(folder: Path) -> None:
    time.sleep(0.5)
    (folder / "result.txt").write_text(str(time.time_ns()))


def ask(root: Path, answers: "multiprocessing.Queue[tuple[str, str]]") -> None:
    place = Store(root).get("slow", 1, {"n": 1}, [], write_slowly)
    answers.put((str(place), (place / "result.txt").read_text()))


def test_a_result_is_made_once_and_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = store.get("mask", 1, {"radius": 7.0}, ["abc"], write_once)
    assert (place / "result.txt").read_text() == "made"
    assert store.get("mask", 1, {"radius": 7.0}, ["abc"], pytest.fail) == place
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["stage"] == "mask"
    assert manifest["parameters"] == {"radius": 7.0}
    assert manifest["inputs"] == ["abc"]
    assert manifest["files"] == ["result.txt"]
    assert place.name == manifest["key"]


def test_everything_that_matters_changes_the_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    places = {
        store.get("mask", 1, {"a": 1, "b": 2}, ["x"], write_once),
        store.get("mask", 1, {"b": 2, "a": 1}, ["x"], write_once),  # the order of keys does not
        store.get("mask", 2, {"a": 1, "b": 2}, ["x"], write_once),
        store.get("other", 1, {"a": 1, "b": 2}, ["x"], write_once),
        store.get("mask", 1, {"a": 1, "b": 3}, ["x"], write_once),
        store.get("mask", 1, {"a": 1, "b": 2}, ["x", "y"], write_once),
    }
    assert len(places) == 5


def test_a_parameter_must_be_plain_and_finite(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Store(tmp_path).get("mask", 1, {"a": Path("x")}, [], write_once)
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).get("mask", 1, {"a": float("nan")}, [], write_once)


def test_a_failure_leaves_nothing_and_is_not_remembered(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no space")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="no space"):
        store.get("mask", 1, {}, [], fail)
    assert not list(tmp_path.rglob("half.txt"))
    assert (store.get("mask", 1, {}, [], write_once) / "result.txt").exists()


def test_the_remnant_of_a_killed_process_is_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = store.get("mask", 1, {}, [], write_once)
    (place / MANIFEST).unlink()
    (place / "stale.txt").write_text("half")
    remnant = place.parent / f"{place.name}.making.xyz"
    remnant.mkdir()
    (remnant / "half.txt").write_text("half")
    assert store.get("mask", 1, {}, [], write_once) == place
    assert sorted(path.name for path in place.iterdir()) == [MANIFEST, "result.txt"]
    assert not remnant.exists()


def test_three_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=ask, args=(tmp_path, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert len(set(got)) == 1


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
