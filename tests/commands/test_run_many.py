"""`vitedge run` on folders: order, what is skipped, flat memory, full disks, and what a terminal shows."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.conftest import CLASSES, Site, contents, names
from tests.tiny import save_checkpoint, save_images
from vitedge.commands.npz import NpzWriter
from vitedge.runtimes.errors import OutputError
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.load import load_encoder

TOLERANCE = 0.02  # as in tests/runtimes/test_encoders.py
TOKENS, HIDDEN = 17, 48
LIMITED = (
    "import resource, signal, vitedge.cli; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); vitedge.cli.main()"
)
# Prints the peak of the process's memory, in bytes, after what it did.
PEAK = (
    "import atexit, re, sys, vitedge.cli\n"
    "status = lambda: open('/proc/self/status').read()\n"
    "atexit.register(lambda: print('peak', int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) * 1024, file=sys.stderr))\n"
    "vitedge.cli.main()"
)


@pytest.fixture(scope="module")
def onnx(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OUT of a build with one artifact."""
    out = tmp_path_factory.mktemp("one") / "out"
    assert site.build(out, "--runtime", "onnx").exit_code == 0
    return out


@pytest.fixture(scope="module")
def features(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for an encoder without classes and with 257 tokens."""
    root = tmp_path_factory.mktemp("features")
    model = save_checkpoint(root / "model", pooler=False, image_size=64, patch_size=4)
    command = ("build", model, "--images", site.calibration, "--runtime", "onnx", "--bench-seconds", "0")
    assert site.vitedge(*command, "--out", root / "out").exit_code == 0
    return root / "out"


def run_apart(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, "run", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def nested(folder: Path) -> list[Path]:
    """Images at several depths, and what no image of the folder is; in the order of calibration."""
    save_images(folder, 5, seed=1)
    save_images(folder / "b" / "c", 7, seed=2)
    save_images(folder / "a", 9, seed=3)
    save_images(folder / ".hidden", 1, seed=4)
    (folder / "notes.txt").write_text("no image")
    (folder / "a" / "image000.png").rename(folder / "a" / "IMAGE.PNG")
    return list(list_images(folder))


def test_folder_gives_what_its_images_give_in_order(site: Site, onnx: Path, tmp_path: Path) -> None:
    paths = nested(tmp_path / "images")
    assert len(paths) == 21
    saved = tmp_path / "features.npz"
    result = site.vitedge("run", onnx / "onnx", tmp_path / "images", "--save", saved, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [entry["image"] for entry in document["images"]] == [str(path) for path in paths]
    assert document["outputs"] == {"last_hidden_state": [21, TOKENS, HIDDEN], "logits": [21, CLASSES]}
    assert document["skipped"] == []
    encoder = load_encoder(onnx / "onnx", threads=1)
    with np.load(saved) as arrays:
        assert list(arrays) == ["images", "last_hidden_state", "logits"]
        assert arrays["images"].tolist() == [str(path) for path in paths]
        for index, path in enumerate(paths):
            for name, values in encoder.encode(path).items():
                assert arrays[name].dtype == np.float32
                np.testing.assert_allclose(arrays[name][index], values[0], atol=TOLERANCE, err_msg=f"{path} {name}")
    for entry, logits in zip(document["images"], arrays_of(saved)["logits"], strict=True):
        assert entry["classes"][0]["label"] == f"LABEL_{logits.argmax()}"
        assert entry["cls"] is None
    assert names(tmp_path) == {"images", "features.npz"}


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def test_json_has_the_layout_of_one_document(site: Site, features: Path, tmp_path: Path) -> None:
    """It is written in pieces; whoever reads it cannot tell."""
    save_images(tmp_path / "images", 11)
    result = site.vitedge("run", features / "onnx", tmp_path / "images", "--json", "--save", tmp_path / "f.npz")
    document = json.loads(result.stdout)
    assert result.stdout == json.dumps(document, indent=1) + "\n"
    tokens = arrays_of(tmp_path / "f.npz")["last_hidden_state"][:, 0]
    np.testing.assert_array_equal(np.float32([entry["cls"] for entry in document["images"]]), tokens)


def test_files_and_folders_may_be_mixed(site: Site, onnx: Path, tmp_path: Path) -> None:
    paths = [*list_images(save_images(tmp_path / "images", 3))]
    result = site.vitedge("run", onnx / "onnx", paths[2], tmp_path / "images", paths[2], "--json")
    found = [entry["image"] for entry in json.loads(result.stdout)["images"]]
    assert found == [str(path) for path in (paths[2], *paths, paths[2])]


def test_unreadable_files_of_a_folder_are_skipped_and_told(site: Site, onnx: Path, tmp_path: Path) -> None:
    paths = list(list_images(save_images(tmp_path / "images", 20)))
    for index in (0, 8, 19):
        paths[index].write_bytes(b"")
    result = site.vitedge("run", onnx / "onnx", tmp_path / "images", "--json", "--save", tmp_path / "f.npz")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    kept = [str(path) for index, path in enumerate(paths) if index not in (0, 8, 19)]
    assert [entry["image"] for entry in document["images"]] == kept == arrays_of(tmp_path / "f.npz")["images"].tolist()
    assert [entry["image"] for entry in document["skipped"]] == [str(paths[index]) for index in (0, 8, 19)]
    assert document["skipped"][0]["reason"].startswith("expected an image, found an empty file")
    assert len(arrays_of(tmp_path / "f.npz")["logits"]) == document["outputs"]["logits"][0] == 17
    encoded = load_encoder(onnx / "onnx").encode(kept)
    np.testing.assert_allclose(arrays_of(tmp_path / "f.npz")["logits"], encoded["logits"], atol=TOLERANCE)
    for index in (0, 8, 19):
        assert f"warning: image skipped: {paths[index]}: expected an image, found an empty file" in result.stderr
    assert "3 files that cannot be read were skipped" in site.vitedge("run", onnx, tmp_path / "images").stdout


def test_an_unreadable_file_that_was_named_is_an_error(site: Site, onnx: Path, tmp_path: Path) -> None:
    paths = list(list_images(save_images(tmp_path / "images", 12)))
    paths[11].write_bytes(b"")
    result = site.vitedge("run", onnx / "onnx", *paths, "--save", tmp_path / "f.npz")
    assert result.exit_code == 2
    assert f"error: {paths[11]}: expected an image, found an empty file" in result.stderr
    assert result.stdout == ""
    assert names(tmp_path) == {"images"}


def test_a_folder_of_nothing_readable_is_an_error(site: Site, onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    result = site.vitedge("run", onnx / "onnx", tmp_path / "images")
    assert (result.exit_code, "no images in it or below" in result.stderr) == (2, True)
    for path in list_images(save_images(tmp_path / "images", 2)):
        path.write_bytes(b"")
    result = site.vitedge("run", onnx / "onnx", tmp_path / "images", "--save", tmp_path / "f.npz")
    assert result.exit_code == 2
    assert f"none of 2 images can be read, such as {tmp_path}/images/image000.png: expected an image" in result.stderr
    assert names(tmp_path) == {"images"}


def test_table_shows_the_first_and_says_how_many(site: Site, onnx: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "images", 23)
    shown = site.vitedge("run", onnx / "onnx", tmp_path / "images").stdout
    assert shown.count("LABEL_") == 10 * CLASSES
    assert "image009.png" in shown
    assert "image010.png" not in shown
    assert "the first 10 of 23 images; --json tells of all, --save saves all" in shown
    assert f"outputs: last_hidden_state [23, {TOKENS}, {HIDDEN}], logits [23, {CLASSES}]" in shown
    few = site.vitedge("run", onnx / "onnx", *list_images(tmp_path / "images")[:10]).stdout
    assert "the first" not in few


def test_of_a_build_one_artifact_must_be_chosen(site: Site, built: Path, onnx: Path, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", 1)
    result = site.vitedge("run", built, images)
    assert result.exit_code == 2
    choice = ", ".join(str(built / runtime) for runtime in ("onnx", "openvino", "tflite"))
    assert f"error: {built}: expected one artifact, found 3; pass one of {choice}" in result.stderr
    assert site.vitedge("run", onnx, images).stdout == site.vitedge("run", onnx / "onnx", images).stdout
    assert "no manifest.json there or in" in site.vitedge("run", tmp_path, images).stderr


def test_memory_does_not_grow_with_the_number_of_images(features: Path, tmp_path: Path) -> None:
    """Of eight times as many only the names are kept; the outputs, or the pixels, of all would be 22 MB more."""
    assert min(448 * 257 * HIDDEN * 4, 448 * 3 * 64 * 64 * 4) > 22e6
    few, many = (save_images(tmp_path / str(count), count, size=128) for count in (64, 512))
    peaks = []
    for folder in (few, many):
        saved = folder.with_suffix(".npz")
        result = run_apart(PEAK, features / "onnx", folder, "--save", saved, "--quiet")
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stderr.split("peak ")[1]))
        with np.load(saved) as arrays:
            assert arrays["last_hidden_state"].shape == (int(folder.name), 257, HIDDEN)
    assert peaks[1] - peaks[0] < 8e6, peaks


@pytest.mark.parametrize("limit", [20_000, 131_000], ids=["while encoding", "while writing the archive"])
def test_full_disk_is_told_and_leaves_the_old_file(onnx: Path, tmp_path: Path, limit: int) -> None:
    """A limit on file sizes stands for the full disk, as in test_build.py; the outputs need some 131 kB."""
    save_images(tmp_path / "images", 40)
    saved = tmp_path / "features.npz"
    saved.write_bytes(b"old")
    before = contents(tmp_path)
    assert 20_000 < 40 * TOKENS * HIDDEN * 4 < 131_000 < 40 * TOKENS * HIDDEN * 4 + 40 * 4 * len(str(tmp_path))
    result = run_apart(LIMITED.format(limit), onnx / "onnx", tmp_path / "images", "--save", saved)
    assert result.returncode == 2, result.stderr
    assert f"error: {saved}: cannot be written (File too large); what was there before is unchanged" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert contents(tmp_path) == before


def test_where_nothing_can_be_written_is_told_before_anything_is_encoded(
    site: Site, onnx: Path, tmp_path: Path
) -> None:
    images = save_images(tmp_path / "images", 1)
    for target, found in ((tmp_path / "no" / "f.npz", "No such file"), (images, "found a folder")):
        result = site.vitedge("run", onnx / "onnx", images, "--save", target)
        assert result.exit_code == 2
        assert f"error: {target}: " in result.stderr
        assert found in result.stderr
        assert "Encoding" not in result.stderr


def test_interrupted_run_leaves_nothing(onnx: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "images", 400)
    saved = tmp_path / "features.npz"
    command = [sys.executable, "-m", "vitedge", "run", str(onnx / "onnx"), str(tmp_path / "images")]
    with subprocess.Popen([*command, "--save", str(saved)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Encoding 400 images\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "interrupted; what was there before is unchanged" in said
    assert names(tmp_path) == {"images"}


def test_a_person_sees_images_per_second(onnx: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "images", 60)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vitedge", "run", str(onnx / "onnx"), str(tmp_path / "images"), "--json"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert len(json.loads(process.stdout.read())["images"]) == 60
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    assert b"60/60" in seen
    assert b"images/s" in seen


@pytest.mark.parametrize("counts", [(1,), (3, 1, 5)])
def test_archive_reads_as_if_numpy_had_saved_it(tmp_path: Path, counts: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    parts = [
        {"a": generator.standard_normal((n, 2, 3)).astype(np.float32)[..., ::-1], "b": generator.integers(0, 9, (n,))}
        for n in counts
    ]
    texts = ["ä", "längst\udcff", *map(str, range(sum(counts)))][: sum(counts)]
    with NpzWriter(tmp_path / "ours.npz", ["a", "b"]) as archive:
        for part in parts:
            archive.append(part)
        assert names(tmp_path) == set()  # what waits has no name
        archive.finish(images=texts)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in ("a", "b")}
    np.savez(tmp_path / "numpys.npz", allow_pickle=False, images=np.array(texts), **whole)
    found, expected = arrays_of(tmp_path / "ours.npz"), arrays_of(tmp_path / "numpys.npz")
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    assert names(tmp_path) == {"ours.npz", "numpys.npz"}


def test_archive_that_is_not_finished_leaves_no_trace(tmp_path: Path) -> None:
    def stop() -> None:
        with NpzWriter(tmp_path / "f.npz", ["a"]) as archive:
            archive.append({"a": np.zeros((2, 3))})
            raise LookupError

    with pytest.raises(LookupError):
        stop()
    with pytest.raises(OutputError, match="found a folder"):
        NpzWriter(tmp_path, ["a"])
    assert names(tmp_path) == set()
