"""Folders that are replaced whole or not at all, and the check that an export computes what PyTorch computes."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import planned, random_pixels, save_checkpoint
from vitedge.converters.checkpoint import load_checkpoint
from vitedge.converters.folders import REPORT_FILE, REPORT_FORMAT, check_replaceable, replacing_folder
from vitedge.converters.lower import RUNTIMES, export_error, lower
from vitedge.runtimes.errors import ConversionError, OutputError


def write_build(folder: Path, mark: str) -> None:
    (folder / REPORT_FILE).write_text(json.dumps({"format": REPORT_FORMAT, "mark": mark}))


def mark_of(folder: Path) -> str:
    return str(json.loads((folder / REPORT_FILE).read_text())["mark"])


def test_replaces_on_success_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for mark in ("first", "second"):
        with replacing_folder(tmp_path / "out") as new:
            write_build(new, mark)
        assert mark_of(tmp_path / "out") == mark
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    with replacing_folder(tmp_path / "out") as new:
        write_build(new, "first")
    with pytest.raises(error), replacing_folder(tmp_path / "out") as new:
        write_build(new, "second")
        raise error
    assert mark_of(tmp_path / "out") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("rename", [1, 2])
def test_interrupt_that_arrives_while_a_rename_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int
) -> None:
    """Between the two renames the old one is put back; after the second the new one is there, and whole."""
    with replacing_folder(tmp_path / "out") as new:
        write_build(new, "first")
    renamed, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        done = renamed(self, target)
        calls.append(target)
        if len(calls) == rename:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "out") as new:
        write_build(new, "second")
    assert mark_of(tmp_path / "out") == ("first", "second")[rename - 1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as new:
        write_build(new, "first")
    running, killed, aside = (tmp_path / name for name in (".out.new-1", ".out.new-2", ".out.old-3"))
    for folder in (running, killed, aside):
        folder.mkdir()
    os.utime(killed, (time.time() - 2 * 24 * 3600,) * 2)
    with replacing_folder(tmp_path / "out") as new:
        write_build(new, "second")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.new-1"}


def test_build_killed_between_its_two_renames_is_recovered(tmp_path: Path) -> None:
    old = tmp_path / ".out.old-4242"
    old.mkdir()
    write_build(old, "first")
    with pytest.raises(ValueError, match="stop"), replacing_folder(tmp_path / "out"):
        raise ValueError("stop")
    assert mark_of(tmp_path / "out") == "first"


@pytest.mark.parametrize(
    "report", [None, "{", "[]", "[" * 200_000, '{"format": "something else"}', json.dumps({"format": [REPORT_FORMAT]})]
)
def test_folder_that_is_not_ours_is_refused(tmp_path: Path, report: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    if report is not None:
        (tmp_path / REPORT_FILE).write_text(report)
    with pytest.raises(OutputError, match="is not a vitedge build"):
        check_replaceable(tmp_path)


def test_what_cannot_be_renamed_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="/proc: is a mount point, which cannot be replaced; pass a folder in it"):
        check_replaceable(Path("/proc"))
    monkeypatch.chdir(tmp_path)
    for current in (Path(), tmp_path):
        with pytest.raises(OutputError, match="is the current folder, which cannot"), replacing_folder(current):
            pass
    with replacing_folder(Path("out")) as new:
        write_build(new, "first")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_in_the_way_is_refused_and_an_empty_folder_is_not(tmp_path: Path) -> None:
    check_replaceable(tmp_path)
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is not a vitedge build"):
        check_replaceable(tmp_path / "out")


def test_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"), replacing_folder(tmp_path / "file" / "out"):
        pass


def test_writers_that_hide_the_disks_error_do_not_hide_it_from_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toolchain says "iostream error"; the disk, asked again, says why."""

    def full(*_: object) -> OSError:
        return OSError(28, "No space left on device")

    monkeypatch.setattr("vitedge.converters.folders._refused_write", full)
    with pytest.raises(OutputError, match="No space left on device"), replacing_folder(tmp_path / "out"):
        raise RuntimeError("basic_ios::clear: iostream error")


def test_other_errors_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), replacing_folder(tmp_path / "out"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_export_error_passes_the_right_model_and_refuses_a_wrong_one(runtime: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(save_checkpoint(tmp_path / "model")))
    pixels = random_pixels()
    plan, _ = planned(checkpoint, pixels=pixels)
    common = {"checkpoint": checkpoint, "plan": plan, "batch": None, "calibration": {"digest": "i", "images": 4}}
    expected = checkpoint.reference()(pixels)
    lower(runtime, tmp_path / "right", encoder=checkpoint.encoder, linears={}, **common)
    assert export_error(tmp_path / "right", pixels, expected) < 5e-5
    name = "layers.1.attention.o_proj.bias"
    wrong = checkpoint.encoder.with_tensors({name: checkpoint.encoder.tensors[name] * np.float32(1.3)})
    lower(runtime, tmp_path / "wrong", encoder=wrong, linears={}, **common)
    with pytest.raises(ConversionError, match=r"differs from PyTorch by .* nothing was quantized"):
        export_error(tmp_path / "wrong", pixels, expected)
    missing = {key: value for key, value in expected.items() if key != "pooler_output"}
    with pytest.raises(ConversionError, match="expected outputs"):
        export_error(tmp_path / "right", pixels, missing)
