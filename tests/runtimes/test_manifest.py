"""Manifests and the files they name: what was written comes back, and everything else is refused in one way."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitedge.runtimes import file_records
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.file_records import FileRecord, sha256_of
from vitedge.runtimes.manifest import (
    FORMAT,
    Manifest,
    Operations,
    Origin,
    TensorRecord,
    artifact_folders,
    load_manifest,
    verify_files,
)
from vitedge.runtimes.preprocess import Preprocessing
from vitedge.runtimes.saturation import Saturation, UnsafeLinear, UnsafePair

ACCURACY = {"outputs": {"last_hidden_state": {"sqnr_db": 30.5}}}
MODEL = bytes(range(256)) * 40
# What a person does about a manifest that cannot be read.
ADVICE = r"; copy the artifact again, or build it again$"


def example(folder: Path) -> Manifest:
    """An artifact whose model is noise: manifests know nothing of what is inside."""
    (folder / "model.onnx").write_bytes(MODEL)
    return Manifest(
        runtime="onnx",
        precision="int8",
        target="avx2",
        minimum_runtime="1.17",
        files=(FileRecord("model.onnx", sha256_of(folder / "model.onnx"), len(MODEL)),),
        inputs=(TensorRecord("pixel_values", "float32", ("batch", 3, 32, 32), "NCHW"),),
        outputs=(TensorRecord("last_hidden_state", "float32", ("batch", 17, 24), "NTD", 0.5, 3),),
        preprocessing=Preprocessing(32, 32, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=("chat", "köter"),
        operations=Operations(("layers.0.mlp.fc1",), {"layers.0.mlp.fc2": "outliers"}, 60, 80),
        saturation=Saturation(
            False, None, 1, 3456, {"layers.0.mlp.fc1": UnsafeLinear(2, 8225, (UnsafePair(7, (4, 5), 8225),))}
        ),
        source=Origin("folder", "d"),
        calibration={"images": 32},
        plan_digest="p",
        tools={"vitedge": "0.1.0"},
        opsets={"ai.onnx": 17, "com.microsoft": 1},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    example(tmp_path).save(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[Any], object]) -> None:
    """Edits the manifest's JSON in place."""
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(document)
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")


def put(*path: str | int, value: object) -> Callable[[Any], None]:
    """A change that sets one value deep in the document."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def test_round_trip(folder: Path) -> None:
    manifest = load_manifest(folder)
    assert manifest == example(folder)
    assert manifest.size_bytes == len(MODEL)
    assert manifest.operations.integer_share == 0.75
    verify_files(manifest, folder)
    measured = replace(manifest, accuracy=ACCURACY, latency={"median_ms": 3.5})
    measured.save(folder)
    assert load_manifest(folder) == measured
    assert load_manifest(folder).accuracy == ACCURACY


def test_writes_no_nan(folder: Path) -> None:
    """JSON has no NaN: other languages' parsers would refuse the whole file."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(load_manifest(folder), accuracy={"cosine": float("nan")}).save(folder)
    assert load_manifest(folder).accuracy is None


@pytest.mark.parametrize("kind", ["empty folder", "no folder", "a file"])
def test_refuses_a_folder_without_manifest(kind: str, tmp_path: Path) -> None:
    path = {"empty folder": tmp_path, "no folder": tmp_path / "out", "a file": tmp_path / "model.onnx"}[kind]
    if kind == "a file":
        path.write_bytes(MODEL)
    expected = f"{path}: expected an artifact folder such as OUT/onnx, found no manifest.json in it"
    with pytest.raises(ArtifactError, match=f"^{re.escape(expected)}$"):
        load_manifest(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}"],
    ids=["empty", "cut", "not UTF-8", "deep", "huge number", "byte order mark"],
)
def test_refuses_what_is_not_json(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"^{re.escape(str(folder))}/manifest\.json: .*JSON file \(.*\){ADVICE}"):
        load_manifest(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_refuses_numbers_that_are_not_finite(number: str, folder: Path) -> None:
    """Every reader of what is made of it would meet them: JSON has none."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text()) | {"latency": {"median_ms": 3.5}}
    path.write_text(json.dumps(document).replace("3.5", number))
    with pytest.raises(ArtifactError, match=rf"expected a JSON file \(expected a finite number, found {number}"):
        load_manifest(folder)


def test_refuses_a_huge_manifest_without_reading_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "manifest.json").open("wb") as file:
        file.truncate((16 << 20) + 1)

    def never(*_: object, **__: object) -> str:
        raise AssertionError("read")

    monkeypatch.setattr(Path, "read_text", never)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*at most 16777216 bytes, found 16777217{ADVICE}"):
        load_manifest(folder)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"vitedge-artifact/1"', "{}", '{"format": "onnx"}'])
def test_refuses_another_document(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: expected format {FORMAT}, found .*{ADVICE}"):
        load_manifest(folder)


@pytest.mark.parametrize("version", ["vitedge-artifact/5", "vitedge-artifact/3", "vitedge-report/1", None, 1])
def test_refuses_another_format(version: object, folder: Path) -> None:
    rewrite(folder, put("format", value=version))
    with pytest.raises(ArtifactError, match=rf"manifest\.json: expected format {FORMAT}, found {version}{ADVICE}"):
        load_manifest(folder)


KEYS = list(Manifest.__dataclass_fields__)


@pytest.mark.parametrize("key", KEYS)
def test_refuses_a_manifest_that_lacks_a_key(key: str, folder: Path) -> None:
    rewrite(folder, lambda document: document.pop(key))
    with pytest.raises(ArtifactError, match=rf"manifest\.json: not a readable manifest \(KeyError: '{key}'\){ADVICE}"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (("files", 0), "name"),
        (("files", 0), "sha256"),
        (("files", 0), "size_bytes"),
        (("inputs", 0), "layout"),
        (("outputs", 0), "shape"),
        (("outputs", 0), "scale"),
        (("operations",), "total_macs"),
        (("saturation",), "proven_safe"),
        (("saturation", "unsafe", "layers.0.mlp.fc1"), "worst"),
        (("saturation", "unsafe", "layers.0.mlp.fc1", "worst", 0), "excess"),
        (("preprocessing",), "std"),
    ],
)
def test_refuses_a_record_that_lacks_a_key(place: tuple[str | int, ...], key: str, folder: Path) -> None:
    def change(document: Any) -> None:
        for step in place:
            document = document[step]
        del document[key]

    rewrite(folder, change)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*KeyError: '{key}'.*{ADVICE}"):
        load_manifest(folder)


def test_keys_of_a_later_minor_version_are_ignored(folder: Path) -> None:
    """What must not be ignored raises the format's number."""
    rewrite(folder, put("energy", value={"millijoule": 3}))
    rewrite(folder, put("files", 0, "note", value="x"))
    assert load_manifest(folder) == example(folder)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [3.5, True, ["x", 1], {"x": [1]}, "text"], ids=str)
def test_a_value_of_another_type_is_refused_or_kept_out(key: str, value: object, folder: Path) -> None:
    """Whatever stands in one place, it is a clear refusal, or it is of the type that belongs there."""
    kept = {
        "target": "text",
        "plan_digest": "text",
        **{section: {"x": [1]} for section in ("calibration", "latency")},
    }
    rewrite(folder, put(key, value=value))
    if kept.get(key) == value:
        assert getattr(load_manifest(folder), key) == value
        return
    with pytest.raises(ArtifactError, match=rf"^{re.escape(str(folder))}/manifest\.json: .*{ADVICE}"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("runtime", value="tensorrt"), "expected runtime to be one of onnx, openvino, tflite, found tensorrt"),
        (put("runtime", value="../onnx"), "expected runtime to be one of"),
        (put("files", value=[]), "at least one file, one input and one output"),
        (put("inputs", value=[]), "at least one file, one input and one output"),
        (put("outputs", value=[]), "at least one file, one input and one output"),
        (put("files", 0, "size_bytes", value=-1), "expected a number of at least 0, found -1"),
        (put("files", 0, "size_bytes", value="10240"), "expected a number of at least 0, found '10240'"),
        (put("files", 0, "size_bytes", value=10240.0), "expected a number of at least 0, found 10240.0"),
        (put("files", 0, "sha256", value=None), "expected a string, found None"),
        (put("inputs", 0, "shape", value=["batch", 3, 32]), "pixel_values: expected images of 32×32"),
        (put("inputs", 0, "dtype", value="uint8"), "pixels as they are need dtype uint8 in preprocessing and input"),
        (put("inputs", 0, "shape", value=[0, 3, 32, 32]), "pixel_values.*found"),
        (put("inputs", 0, "shape", value=["N", 3, 32, 32]), "found 'N'"),
        (put("inputs", 0, "shape", value=[1, 3, 64, 64]), r"images of 32×32.*found \[1, 3, 64, 64\]"),
        (put("inputs", 0, "shape", value=[1 << 40, 3, 32, 32]), "batch or 1 to 4096 of them"),
        (put("inputs", 0, "zero_point", value=3.7), "expected a whole number, found 3.7"),
        (put("inputs", 0, "shape", value=32), "TypeError"),
        (put("inputs", 0, "layout", value="HWCN"), "pixel_values.*NCHW or NHWC.*HWCN"),
        (put("outputs", 0, "scale", value="half"), "ValueError.*half"),
        (put("outputs", 0, "scale", value=10**400), "expected a finite number"),
        (put("outputs", 0, "zero_point", value=float("inf")), "expected a finite number"),
        (put("operations", "total_macs", value=0), "60 of 0 multiply-accumulates"),
        (put("operations", "integer_macs", value=81), "81 of 80 multiply-accumulates"),
        (put("operations", "floating", value=["a"]), "AttributeError"),
        (put("saturation", "proven_safe", value=True), "proven_safe is True, but 1 linears are listed as unsafe"),
        (put("saturation", "proven_safe", value=None), "proven_safe is None, but 1"),
        (put("saturation", "unsafe", value={}), "proven_safe is False, but 0 linears"),
        (put("saturation", "pairs", value="many"), "expected a number of at least 0, found 'many'"),
        (
            put("instruction_sets", value=["x86"]),
            "instruction_sets: expected x86-vnni, arm64-dotprod, arm64, as saturation says, found x86",
        ),
        (put("saturation", "not_applicable", value=3), "expected a string, found 3"),
        (put("saturation", "unsafe", "layers.0.mlp.fc1", "worst", 0, "inputs", value=[4]), "ValueError"),
        (put("precision", value="x;reboot;/y"), "expected precision to be one of int8, fp32"),
        (put("minimum_runtime", value="1.17\n--index-url http://elsewhere"), "expected a version such as 1.17, found"),
        (put("tools", "vitedge", value="1.0 # x"), "expected a version such as 1.17, found '1.0 # x'"),
        (put("calibration", "seen", value="x"), "expected a list, found str"),
        (put("calibration", "seen", value=[3]), "expected a string, found 3"),
        (put("source", value={}), "KeyError"),
        (put("source", "random_weights", value="no"), "random_weights to be true or false, found 'no'"),
        (put("source", "digest", value=None), "expected a string, found None"),
        (put("accuracy", value={}), "KeyError: 'outputs'"),
        (
            put("outputs", 0, "name", value="logits"),
            r"labels: expected one for each of logits \['batch', 17, 24\], found 2",
        ),
        (put("preprocessing", "height", value=0), "size within 4096"),
        (put("preprocessing", "std", value=[0.5, float("nan"), 0.5]), "finite"),
        (put("preprocessing", "mean", value=[10**400] * 3), "expected a finite number"),
        (put("labels", value=["chat", 3]), "expected a string, found 3"),
        (put("labels", value="chat"), "expected a list, found str"),
    ],
)
def test_refuses_impossible_values(change: Callable[[Any], None], message: str, folder: Path) -> None:
    rewrite(folder, change)
    with pytest.raises(ArtifactError, match=rf"^{re.escape(str(folder))}/manifest\.json: .*{message}.*{ADVICE}"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "name",
    ["../model.onnx", "/etc/passwd", "sub/model.onnx", "..\\model.onnx", "C:model.onnx", "..", ".", "", "a\0b"],
)
def test_refuses_a_file_outside_the_folder(name: str, folder: Path) -> None:
    """A manifest comes from elsewhere: it must not choose what is read from this machine."""
    rewrite(folder, put("files", 0, "name", value=name))
    message = rf"manifest\.json: file name {re.escape(repr(name))}: expected a plain name inside the artifact's folder"
    with pytest.raises(ArtifactError, match=message + ADVICE):
        load_manifest(folder)


def test_one_flipped_bit_is_refused(folder: Path) -> None:
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    expected = sha256_of(path)[:12]
    with pytest.raises(
        ArtifactError,
        match=rf"^{re.escape(str(path))}: expected SHA-256 .*, found {expected}….*copy the artifact again$",
    ):
        verify_files(load_manifest(folder), folder)


def test_another_size_is_refused_without_hashing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "model.onnx"
    path.write_bytes(MODEL[:-1])

    def never(_: Path) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(file_records, "sha256_of", never)
    message = (
        rf"^{re.escape(str(path))}: expected 10240 bytes as in manifest\.json, found 10239; copy the artifact again$"
    )
    with pytest.raises(ArtifactError, match=message):
        verify_files(load_manifest(folder), folder)


def test_a_huge_declared_size_is_refused(folder: Path) -> None:
    rewrite(folder, put("files", 0, "size_bytes", value=10**15))
    with pytest.raises(ArtifactError, match=rf"model\.onnx: expected {10**15} bytes.*found 10240; copy"):
        verify_files(load_manifest(folder), folder)


@pytest.mark.parametrize("kind", ["missing", "a folder", "a dangling link"])
def test_a_missing_file_is_refused(kind: str, folder: Path) -> None:
    path = folder / "model.onnx"
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a dangling link":
        path.symlink_to(folder / "elsewhere")
    message = rf"^{re.escape(str(path))}: named in manifest\.json, but missing; copy the whole folder again$"
    with pytest.raises(ArtifactError, match=message):
        verify_files(load_manifest(folder), folder)


def test_every_file_is_verified(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights")
    second = {"name": "model.bin", "sha256": "0" * 64, "size_bytes": 7}
    rewrite(folder, lambda document: document["files"].append(second))
    with pytest.raises(ArtifactError, match=r"model\.bin: expected SHA-256 000000000000…"):
        verify_files(load_manifest(folder), folder)


def test_artifacts_are_found_in_a_folder_or_below(folder: Path, tmp_path: Path) -> None:
    assert artifact_folders(folder) == {"onnx": folder}
    build = tmp_path / "build"
    (build / "onnx").mkdir(parents=True)
    example(build / "onnx").save(build / "onnx")
    assert artifact_folders(build) == {"onnx": build / "onnx"}
    with pytest.raises(ArtifactError, match=r"nowhere: expected an artifact such as OUT/onnx.*no such folder"):
        artifact_folders(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"empty: .*no manifest\.json there or in onnx, openvino, tflite below"):
        artifact_folders(tmp_path / "empty")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_anything_in_any_place(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A value of any kind anywhere in a manifest: it loads, or it is refused in one way."""
    folder = tmp_path_factory.getbasetemp() / "anything"
    folder.mkdir(exist_ok=True)
    document = json.loads(json.dumps(example(folder).to_json()))
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    try:
        manifest = load_manifest(folder)
    except ArtifactError as error:
        assert str(error).startswith(f"{folder}/manifest.json: ")
    else:
        assert 0 <= manifest.operations.integer_share <= 1
        assert manifest.files
        assert len(manifest.inputs[0].shape) == 4
