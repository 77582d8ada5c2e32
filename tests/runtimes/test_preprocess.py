"""Preprocessing: what `transformers` feeds the encoder, and a contract that is checked.

The requirement is one level of 255 before normalization. What is asserted is more: Pillow's own bits, and after the
normalization no more than the rounding of float32.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.runtimes.pictures import Pixels, awkward, cmyk_jpeg, smooth
from tests.tiny import PHOTOGRAPHS, needs_shared
from vitedge.runtimes.errors import ArtifactError, CheckpointError, InputShapeError
from vitedge.runtimes.image import decode_image, read_image
from vitedge.runtimes.preprocess import Preprocessing
from vitedge.runtimes.resize import RESAMPLE_NAMES

AWKWARD = awkward()
LEVEL = 1 / 255
# Pillow before 13 always ran the horizontal pass first, which can round the other way.
ALLOWED = 1e-6 if int(PIL.__version__.split(".")[0]) >= 13 else LEVEL
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "vit-base-patch16-224-in21k": {"size": {"height": 224, "width": 224}, "resample": 2},
    "bicubic, ImageNet": {
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "384 × 160": {"size": {"height": 384, "width": 160}, "resample": 3, "image_std": [0.1, 0.2, 0.3]},
}


def difference(image: Pixels, seen: Image.Image, config: Mapping[str, Any]) -> float:
    """Largest difference from transformers, in units of the 0 to 1 image before normalization."""
    reference = ViTImageProcessorPil(**config)
    expected: NDArray[np.float32] = reference(images=seen, return_tensors="np")["pixel_values"][0]
    contract = Preprocessing.from_config(config)
    found = contract(image)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (3, config["size"]["height"], config["size"]["width"])
    return float((np.abs(found - expected) * np.array(contract.std)[:, None, None]).max())


@needs_shared
def test_every_photograph_is_seen_as_by_transformers() -> None:
    files = sorted(PHOTOGRAPHS.rglob("*.jpg"))
    assert len(files) == 500
    configs = list(CONFIGS.values())[:2]
    worst = {
        str(file): difference(read_image(file), load_image(str(file)), configs[index % 2])
        for index, file in enumerate(files)
    }
    assert {file: value for file, value in worst.items() if value > ALLOWED} == {}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # Pillow's, about what it drops
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files_are_seen_as_by_transformers(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(AWKWARD[name])
    with Image.open(path) as file:
        seen = load_image(file)
    for config in CONFIGS.values():
        assert difference(read_image(path), seen, config) <= ALLOWED


def test_cmyk_is_seen_as_by_transformers_but_for_two_levels(tmp_path: Path) -> None:
    """OpenCV turns inks into RGB with another division than Pillow (see test_image)."""
    (tmp_path / "cmyk.jpg").write_bytes(cmyk_jpeg())
    seen = load_image(str(tmp_path / "cmyk.jpg"))
    for config in CONFIGS.values():
        assert difference(decode_image(cmyk_jpeg(), "cmyk.jpg"), seen, config) <= 2 * LEVEL + 1e-6


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("height", "width"), [(3000, 4000), (4000, 3000), (1, 1), (100, 8000), (8000, 100), (1, 8000), (224, 224), (13, 7)]
)
def test_any_size_is_seen_as_by_transformers(height: int, width: int, config: Mapping[str, Any]) -> None:
    image = smooth(height, width, seed=height)
    if height * width < 1_000_000:  # noise is where filters overshoot
        image ^= np.random.default_rng(1).integers(0, 128, image.shape, dtype=np.uint8)
    assert difference(image, Image.fromarray(image), config) <= ALLOWED


def test_a_difference_of_one_level_is_seen() -> None:
    """The twin of the tests above: they can fail."""
    image = smooth(224, 224)
    off = np.where(image < 255, image + 1, image).astype(np.uint8)
    assert difference(off, Image.fromarray(image), CONFIGS["bicubic, ImageNet"]) == pytest.approx(LEVEL, abs=1e-6)


def test_read_only_images_are_accepted() -> None:
    """As `np.asarray(pillow_image)` is."""
    image = smooth(20, 30)
    image.setflags(write=False)
    assert Preprocessing.from_config({"size": 8})(image).shape == (3, 8, 8)


def test_a_batch_is_its_images_one_by_one() -> None:
    contract = Preprocessing.from_config(CONFIGS["bicubic, ImageNet"])
    images = [smooth(40, 30), smooth(224, 224), smooth(3, 700)]
    batch = contract.batch(images)
    assert batch.shape == (3, 3, 224, 224)
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, contract(image))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int8),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_refuses_what_is_not_an_rgb_image(image: Any) -> None:
    with pytest.raises(InputShapeError) as caught:
        Preprocessing.from_config({"size": 8})(image)
    assert str(caught.value) == (f"image: expected uint8 [height, width, 3], found {image.dtype} {list(image.shape)}")


def test_defaults_are_those_of_transformers() -> None:
    contract, reference = Preprocessing.from_config({}), ViTImageProcessorPil()
    assert contract == Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert contract.mean == tuple(reference.image_mean)
    assert contract.std == tuple(reference.image_std)
    assert RESAMPLE_NAMES[reference.resample] == contract.resample
    assert reference.rescale_factor == contract.rescale_factor


@pytest.mark.parametrize("resample", range(6))
def test_reads_what_transformers_writes(resample: int, tmp_path: Path) -> None:
    config = {
        "size": {"height": 24, "width": 40},
        "resample": resample,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "rescale_factor": 1 / 127.5,
    }
    ViTImageProcessorPil(**config).save_pretrained(tmp_path)
    contract = Preprocessing.from_config(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    assert contract == Preprocessing(24, 40, RESAMPLE_NAMES[resample], 1 / 127.5, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    image = smooth(50, 50)
    assert difference(image, Image.fromarray(image), config) <= 2 * ALLOWED  # this rescale doubles the unit


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"size": 384}, {"height": 384, "width": 384}),
        ({"resample": "bicubic"}, {"resample": "bicubic"}),
        ({"image_mean": 0.25, "image_std": 0.75}, {"mean": (0.25,) * 3, "std": (0.75,) * 3}),
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"do_rescale": False}, {"rescale_factor": 1.0}),
        ({"do_center_crop": False, "do_pad": None, "do_convert_rgb": True}, {}),
        ({"size": 4096}, {"height": 4096, "width": 4096}),
    ],
)
def test_reads_what_a_config_may_say(config: dict[str, Any], changed: dict[str, Any]) -> None:
    defaults = {"height": 224, "width": 224, "resample": "bilinear", "rescale_factor": 1 / 255}
    defaults |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "dtype": "float32"}
    assert vars(Preprocessing.from_config(config)) == defaults | changed


def short(value: object) -> str:
    return str(value)[:60]


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_std": [0.5, NAN, 0.5]}, "expected a finite rescale_factor and 3 finite numbers in mean and in std"),
        ({"image_mean": [INFINITY, 0.5, 0.5]}, "3 finite numbers in mean"),
        ({"rescale_factor": NAN}, "finite rescale_factor"),
        ({"rescale_factor": 0}, "rescale_factor must be positive"),
        ({"rescale_factor": -1}, "rescale_factor must be positive"),
        ({"rescale_factor": "tiny"}, "'tiny'"),
        ({"rescale_factor": None}, "NoneType"),
        ({"image_std": [0.5, 0, 0.5]}, "std must not be 0"),
        ({"image_std": 0}, "std must not be 0"),
        ({"image_mean": [0.5, 0.5]}, "values to unpack"),
        ({"image_mean": [0.5] * 4}, "values to unpack"),
        ({"image_mean": ["a", "b", "c"]}, "could not convert"),
        ({"image_mean": None}, "NoneType"),
        ({"image_mean": 10**400}, "too large"),
        ({"size": 0}, "expected a size within 4096, found 0×0"),
        ({"size": -8}, "expected a size within 4096, found -8×-8"),
        ({"size": 4097}, "expected a size within 4096, found 4097×4097"),
        ({"size": {"height": 10**30, "width": 224}}, "expected a size within 4096"),
        ({"size": {"height": INFINITY, "width": 224}}, "infinity"),
        ({"size": {"height": NAN, "width": 224}}, "NaN"),
        ({"size": {"height": None, "width": 224}}, "NoneType"),
        ({"size": {"height": "tall", "width": 224}}, "'tall'"),
        ({"size": {"shortest_edge": 224}}, "expected a plain resize.*shortest_edge"),
        ({"size": {"height": 224}}, "expected a plain resize"),
        ({"size": [224, 224]}, "expected a plain resize"),
        ({"size": None}, "expected a plain resize"),
        ({"do_center_crop": True, "crop_size": 224}, "do_center_crop True"),
        ({"do_pad": True}, "do_pad True"),
        ({"do_resize": False}, "do_resize false"),
        ({"resample": 6}, "resample.*found '6'"),
        ({"resample": -1}, "resample.*found '-1'"),
        ({"resample": 2.0}, "resample.*found '2.0'"),
        ({"resample": None}, "resample.*found 'None'"),
        ({"resample": "cubic"}, "resample.*nearest.*bicubic.*found 'cubic'"),
    ],
    ids=short,
)
def test_refuses_a_bad_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^preprocessor_config\.json: .*{message}"):
        Preprocessing.from_config(config)


def test_json_round_trip() -> None:
    for config in CONFIGS.values():
        contract = Preprocessing.from_config(config)
        assert Preprocessing.from_json(json.loads(json.dumps(contract.to_json(), allow_nan=False))) == contract


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "size within 4096"),
        ({"width": 4097}, "size within 4096"),
        ({"height": 224.0}, "expected a whole number, found 224.0"),
        ({"height": "224"}, "expected a whole number, found '224'"),
        ({"height": True}, "expected a whole number, found True"),
        ({"resample": 2}, "found '2'"),
        ({"mean": [0.5, 0.5]}, "not readable"),
        ({"mean": {"r": 1}}, "not readable"),
        ({"mean": [10**400] * 3}, "not readable"),
        ({"std": [0.5, 0.0, 0.5]}, "std must not be 0"),
        ({"std": [0.5, NAN, 0.5]}, "finite"),
        ({"rescale_factor": INFINITY}, "finite"),
        ({"rescale_factor": 10**400}, "not readable"),
        ({"rescale_factor": None}, "not readable"),
    ],
    ids=short,
)
def test_refuses_a_bad_json_contract(change: dict[str, Any], message: str) -> None:
    document = Preprocessing.from_config({}).to_json() | change
    with pytest.raises(ArtifactError, match=rf"^preprocessing: .*{message}"):
        Preprocessing.from_json(document)


@pytest.mark.parametrize("key", ["height", "width", "resample", "rescale_factor", "mean", "std"])
def test_refuses_a_contract_that_lacks_a_field(key: str) -> None:
    document = Preprocessing.from_config({}).to_json()
    del document[key]
    with pytest.raises(ArtifactError, match=rf"^preprocessing: not readable \(KeyError: '{key}'\)"):
        Preprocessing.from_json(document)
