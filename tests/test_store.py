import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from cryosweep import app
from cryosweep.job.stages import CONSENSUS_VERSION, SIMULATION_VERSION
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


@pytest.mark.parametrize("damage", ["bytes", "length", "missing", "no digests"])
def test_a_damaged_result_is_said_and_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    place = store.get("mask", 1, {}, [], write_once)
    assert store.get("mask", 1, {}, [], pytest.fail) == place
    result, manifest = place / "result.txt", place / MANIFEST
    if damage == "bytes":
        result.write_text("maid")
    elif damage == "length":
        result.write_text("mad")
    elif damage == "missing":
        result.unlink()
    else:
        told = json.loads(manifest.read_text())
        del told["sha256"]
        manifest.write_text(json.dumps(told))
    assert store.get("mask", 1, {}, [], write_once) == place
    assert result.read_text() == "made"
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "the stored result" in line
    assert "\n" not in line
    assert store.get("mask", 1, {}, [], pytest.fail) == place


def test_bytes_are_checked_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Store(tmp_path).get("mask", 1, {}, [], write_once)
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.name)
        return digest_file(path)

    monkeypatch.setattr("cryosweep.study.store.digest_file", digest)
    for _ in range(3):
        assert Store(tmp_path).get("mask", 1, {}, [], pytest.fail) == place
    assert read == ["result.txt"]


def test_a_resumable_result_goes_on_with_what_lies_there(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def stopped(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    def finish(folder: Path) -> None:
        assert (folder / "half.txt").read_text() == "half"
        (folder / "half.txt").unlink()
        write_once(folder)

    with pytest.raises(KeyboardInterrupt):
        store.get("slow", 1, {}, [], stopped, resumable=True)
    assert len(store.remnants()) == 1
    place = store.get("slow", 1, {}, [], finish, resumable=True)
    assert sorted(path.name for path in place.iterdir()) == [MANIFEST, "result.txt"]
    assert store.remnants() == []
    # made again by order, and one that failed before it wrote anything leaves nothing
    with pytest.raises(RuntimeError, match="again"):
        store.get("slow", 1, {}, [], fail_at_once, resumable=True, again=True)
    assert store.remnants() == []


def fail_at_once(folder: Path) -> None:
    raise RuntimeError("again")


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


def test_store_is_listed_and_cleaned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> None:
        (folder / "data.bin").write_bytes(bytes(2_000_000))

    store = Store(tmp_path / "stages")
    old = store.get("simulation", SIMULATION_VERSION - 1, {"a": 1}, [], make)
    kept = store.get("simulation", SIMULATION_VERSION, {"a": 1}, [], make)
    unused = store.get("consensus", CONSENSUS_VERSION, {"a": 2}, [], make)
    month_ago = time.time() - 31 * 86400
    for folder in (kept, unused):
        os.utime(folder / "manifest.json", (month_ago, month_ago))
    store.get("simulation", SIMULATION_VERSION, {"a": 1}, [], make)  # used again just now
    remnant = kept.with_name(f"{'0' * 64}.making.xyz")
    remnant.mkdir()
    busy = kept.with_name(f"{'1' * 64}.making.xyz")
    busy.mkdir()
    output = ["--output-dir", str(tmp_path)]
    with FileLock(kept.with_name(f"{'1' * 64}.lock")):
        assert app.main(["store", "ls", *output]) == 0
        text = capsys.readouterr().out
        assert f"consensus    {unused.name[:12]}     2.0 MB  used 31 days ago" in text
        assert "(the stage changed since)" in text
        assert "3 results, 6.0 MB" in text
        assert "1 half made" in text
        assert app.main(["store", "gc", "--unused-for", "30", "--dry-run", *output]) == 0
        assert "would delete 3 folders, 4.0 MB" in capsys.readouterr().out
        assert old.exists()
        assert unused.exists()
        assert app.main(["store", "gc", *output]) == 0
        capsys.readouterr()
        assert not old.exists()
        assert not remnant.exists()
        assert unused.exists()
        with FileLock(unused.with_name(f"{unused.name}.lock")):
            assert app.main(["store", "gc", "--unused-for", "30", *output]) == 0
            assert "kept, a job is making it" in capsys.readouterr().out
        assert app.main(["store", "gc", "--unused-for", "30", *output]) == 0
        assert not unused.exists()
        assert kept.exists()
        assert busy.exists()
    assert app.main(["store", "ls", "--output-dir", str(tmp_path / "nosuch")]) == 1
    assert "there is no store of stages" in capsys.readouterr().err
    assert app.main(["store", "gc", "--unused-for", "-1", *output]) == 1
