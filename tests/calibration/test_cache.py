"""The calibration cache: found again only for exactly the same inputs, and worth nothing when it is damaged."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import random_encoder, random_pixels
from vitedge.calibration import cache
from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.quantize import observe

FIELDS = ("minimum", "maximum", "mean", "covariance")
PARTS = {"checkpoint": "c0ffee", "images": "1234", "preprocessing": '{"height": 32}', "method": "per-channel-1"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, below one that does not exist yet."""
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "deep/cache"))
    return tmp_path / "deep/cache/calibration"


@pytest.fixture(scope="module")
def statistics() -> Mapping[str, InputStatistics]:
    return observe(random_encoder(), [random_pixels()])


def assert_equal(found: Mapping[str, InputStatistics] | None, expected: Mapping[str, InputStatistics]) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, field in ((name, field) for name in expected for field in FIELDS):
        np.testing.assert_array_equal(getattr(found[name], field), getattr(expected[name], field))
        assert getattr(found[name], field).dtype == np.float32


def test_comes_back_to_the_bit(statistics: Mapping[str, InputStatistics]) -> None:
    key = cache.fingerprint(**PARTS)
    assert cache.load(key) is None
    cache.store(key, statistics)
    assert_equal(cache.load(key), statistics)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_any_other_part_is_another_entry(part: str, statistics: Mapping[str, InputStatistics]) -> None:
    cache.store(cache.fingerprint(**PARTS), statistics)
    assert cache.load(cache.fingerprint(**{**PARTS, part: PARTS[part] + "x"})) is None
    assert cache.load(cache.fingerprint(**{k: v for k, v in PARTS.items() if k != part})) is None


def test_fingerprint_knows_which_part_is_which() -> None:
    assert cache.fingerprint(a="1", b="2") == cache.fingerprint(b="2", a="1")
    different = [{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "12", "b": ""}, {"a": '1", "b": "2'}, {"ab": "12"}]
    assert len({cache.fingerprint(**parts) for parts in different}) == len(different)
    assert cache.fingerprint(a="1", b="2") == hashlib.sha256(b'{"a": "1", "b": "2"}').hexdigest()


def test_a_newer_result_replaces_the_older(statistics: Mapping[str, InputStatistics]) -> None:
    cache.store("k", statistics)
    halved = {name: found.divided_by(np.full_like(found.mean, 2)) for name, found in statistics.items()}
    cache.store("k", halved)
    assert_equal(cache.load("k"), halved)


def test_the_oldest_make_room_and_the_newest_stays(
    folder: Path, statistics: Mapping[str, InputStatistics], monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, key in enumerate(("new", "older", "oldest")):
        cache.store(key, statistics)
        os.utime(folder / f"{key}.safetensors", (1e9 - age, 1e9 - age))
    size = (folder / "new.safetensors").stat().st_size
    monkeypatch.setattr(cache, "_MAX_BYTES", 2 * size + 1)
    cache.store("newest", statistics)
    assert {path.stem for path in folder.iterdir()} == {"newest", "new"}
    monkeypatch.setattr(cache, "_MAX_BYTES", 1)
    cache.store("huge", statistics)
    assert {path.stem for path in folder.iterdir()} == {"huge"}


def test_unfinished_files_of_killed_builds_make_room_too(
    folder: Path, statistics: Mapping[str, InputStatistics], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".k.safetensors.new-1234").write_bytes(bytes(10))
    monkeypatch.setattr(cache, "_MAX_BYTES", 1)
    cache.store("k", statistics)
    assert [path.name for path in folder.iterdir()] == ["k.safetensors"]


# Damage


def test_every_truncation_is_noticed(
    folder: Path, statistics: Mapping[str, InputStatistics], caplog: pytest.LogCaptureFixture
) -> None:
    cache.store("k", statistics)
    path = folder / "k.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        caplog.clear()
        path.write_bytes(whole[:length])
        assert cache.load("k") is None
        assert f"{path} is unreadable or damaged, and is not used (" in caplog.text
    path.write_bytes(whole)
    assert_equal(cache.load("k"), statistics)


def test_a_flipped_bit_is_noticed_wherever_it_is(
    folder: Path, statistics: Mapping[str, InputStatistics], caplog: pytest.LogCaptureFixture
) -> None:
    """In the header it may rename a linear, in the numbers it changes a range and the model with it."""
    cache.store("k", statistics)
    path = folder / "k.safetensors"
    whole = path.read_bytes()
    for position in np.random.default_rng(0).choice(len(whole), 100, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if (found := cache.load("k")) is not None:  # the flip was in the header's padding
            assert_equal(found, statistics)
    assert len(caplog.records) > 95


@pytest.mark.parametrize("content", [b"", b"not a cache", b"\x80\x04\x95pickle", b"\xff" * 64, b"{}" * 40])
def test_what_is_no_cache_file_is_passed_over(
    folder: Path, content: bytes, statistics: Mapping[str, InputStatistics]
) -> None:
    folder.mkdir(parents=True)
    (folder / "k.safetensors").write_bytes(content)
    assert cache.load("k") is None
    cache.store("k", statistics)
    assert_equal(cache.load("k"), statistics)


def test_an_entry_of_another_layout_is_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sound safetensors file that some other version wrote."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({"linear/minimum": np.zeros(3, np.float32)}, folder / "k.safetensors")
    assert cache.load("k") is None
    assert "is unreadable or damaged, and is not used" in caplog.text


def test_a_pickle_is_never_executed(folder: Path, tmp_path: Path) -> None:
    """Both as a plain pickle and as numpy's: what would leave a file behind if it ran."""
    import io
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
    for content in (pickle.dumps(Bomb()), buffer.getvalue()):
        (folder / "k.safetensors").write_bytes(content)
        assert cache.load("k") is None
    assert not (tmp_path / "exploded").exists()


def test_what_is_stored_is_one_safetensors_file(folder: Path, statistics: Mapping[str, InputStatistics]) -> None:
    from safetensors.numpy import load_file

    cache.store("k", statistics)
    assert [path.name for path in folder.iterdir()] == ["k.safetensors"]
    arrays = load_file(folder / "k.safetensors")
    assert arrays.keys() == {f"{name}/{field}" for name in statistics for field in FIELDS}


# Writing


def test_an_interrupted_write_leaves_the_old_entry(
    folder: Path, statistics: Mapping[str, InputStatistics], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store("k", statistics)

    def half_written(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "save_file", half_written)
        cache.store("k", {})
    assert_equal(cache.load("k"), statistics)
    assert [path.name for path in folder.iterdir()] == ["k.safetensors"]


def test_a_full_disk_is_reported_and_leaves_nothing(
    folder: Path,
    statistics: Mapping[str, InputStatistics],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_space(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", no_space)
    cache.store("k", statistics)
    assert (
        f"calibration is not cached: {folder}/k.safetensors: cannot be written (No space left on device)" in caplog.text
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("where", ["a file", "below a file", "a name too long"])
def test_an_impossible_folder_costs_the_cache_not_the_build(
    where: str,
    tmp_path: Path,
    statistics: Mapping[str, InputStatistics],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    place = {"a file": "file", "below a file": "file/sub", "a name too long": "x" * 300}[where]
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / place))
    cache.store("k", statistics)
    assert "calibration is not cached: " in caplog.text
    assert str(tmp_path / place) in caplog.text
    assert cache.load("k") is None


def test_an_entry_without_permission_is_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Path.is_file raises on a folder that may not be searched, such as another user's. Root may search them all."""

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with caplog.at_level(logging.WARNING):
        assert cache.load("k") is None
    assert "Permission denied" in caplog.text


# Where it is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"VITEDGE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/calibration"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/vitedge/calibration"),
        ({"VITEDGE_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/vitedge/calibration"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/vitedge/calibration"),
        ({}, "/home/me/.cache/vitedge/calibration"),
    ],
)
def test_folder(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VITEDGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)


def test_a_folder_for_who_has_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in containers whose user has no entry: where Path.home() raises."""
    monkeypatch.setattr(Path, "home", lambda: 1 / 0)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path / "calibration"
    monkeypatch.delenv("VITEDGE_CACHE")
    assert cache.folder().parts[-3:] == (".cache", "vitedge", "calibration")
