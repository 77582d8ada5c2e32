"""What the three wrappers share: loading and verifying once, checking inputs, batching, encoding images.

A wrapper adds how its runtime loads a model and how it runs one array. All three are used the same way:

    encoder = OnnxEncoder("out/onnx", threads=2)
    outputs = encoder(pixel_values)            # float32 [n, 3, height, width], normalized -> named float32 arrays
    outputs = encoder.encode(["cat.jpg"])      # paths or uint8 RGB arrays [height, width, 3] -> the same
    outputs = encoder.encode("photos")         # all images below a folder, in the order of their paths
    for outputs in encoder.stream("photos"):   # any number of any of these -> the same, batch by batch
        ...
"""

import importlib.metadata
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.errors import ArtifactError, ImageError, InputShapeError, RuntimeMissingError, VitedgeError
from vitedge.runtimes.image import read_image
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.manifest import load_manifest, verify_files
from vitedge.runtimes.preprocess import PixelValues

FloatArray = NDArray[np.float32]
Image = str | PathLike[str] | NDArray[np.uint8]
# The package that provides each runtime; the extra that installs it has the runtime's name.
DISTRIBUTIONS = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert"}
BATCH = 8  # images that run at a time
# Each holds one decoded image. OpenCV decodes, and numpy multiplies, without Python's lock.
READERS = 2


class RuntimeEncoder(ABC):
    """Base of the three wrappers.

    Args:
        folder: Artifact folder: the model and its `manifest.json`.
        threads: Threads that the runtime may use for one inference; None leaves it to the runtime.

    Raises:
        ArtifactError: The folder is not an artifact of this runtime, a file does not match its manifest, or the
            runtime cannot load it.
        RuntimeMissingError: The runtime is not installed, cannot be imported, or is too old.
    """

    runtime: str  # its key in manifests and in DISTRIBUTIONS

    def __init__(self, folder: str | PathLike[str], *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputShapeError(f"threads: expected at least 1, found {threads}")
        path = Path(folder)
        self.manifest = load_manifest(path)
        if self.manifest.runtime != self.runtime:
            raise ArtifactError(
                f"{path}: expected an artifact for {self.runtime}, found one for {self.manifest.runtime};"
                " vitedge.runtimes.load.load_encoder picks the wrapper by itself"
            )
        self._check_runtime()
        verify_files(self.manifest, path)
        try:
            self._load(path, threads)
        except ImportError as error:
            raise RuntimeMissingError(
                f"{DISTRIBUTIONS[self.runtime]} cannot be imported ({error}); install it again with:"
                f" pip install --force-reinstall 'vitedge[{self.runtime}]'"
            ) from error
        except VitedgeError:
            raise
        except Exception as error:  # each runtime raises types of its own
            distribution = DISTRIBUTIONS[self.runtime]
            raise ArtifactError(
                f"{path}: {distribution} {installed_version(distribution)} cannot load it, although its files match"
                f" its manifest ({str(error).strip()}); build it again"
            ) from error

    @abstractmethod
    def _load(self, folder: Path, threads: int | None) -> None:
        """Loads the model once."""

    @abstractmethod
    def _run(self, pixel_values: PixelValues) -> Mapping[str, FloatArray]:
        """Runs one array in the model's own layout and a batch size that it accepts."""

    def __call__(self, pixel_values: PixelValues) -> dict[str, FloatArray]:
        """Encodes pixels of the encoder's size.

        Args:
            pixel_values: RGB, any n of at least 1: float32 [n, 3, height, width], normalized; or, where the manifest's
                preprocessing has dtype uint8, uint8 [n, height, width, 3].

        Returns:
            The outputs named in the manifest, float32, batch first.

        Raises:
            InputShapeError: Another data type or shape, or a pixel that is not finite.
        """
        contract = self.manifest.preprocessing
        integers = contract.dtype == "uint8"
        expected = (contract.height, contract.width, 3) if integers else (3, contract.height, contract.width)
        if pixel_values.dtype != contract.dtype or pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise InputShapeError(
                f"pixel_values: expected {contract.dtype} [n, {', '.join(map(str, expected))}], found"
                f" {pixel_values.dtype} {list(pixel_values.shape)}"
            )
        if not len(pixel_values):
            raise InputShapeError("pixel_values: expected at least one image, found none")
        finite = np.isfinite(pixel_values)  # integers would turn NaN into an ordinary number
        if not finite.all():
            image = int(np.argmin(finite.all(axis=(1, 2, 3))))
            raise InputShapeError(f"pixel_values: expected finite numbers, found NaN or infinity in image {image}")
        if self.manifest.inputs[0].layout == "NHWC" and not integers:
            pixel_values = pixel_values.transpose(0, 2, 3, 1)
        batch = self.manifest.inputs[0].shape[0]
        if not isinstance(batch, int):
            return dict(self._run(np.ascontiguousarray(pixel_values)))
        parts = [self._run(_padded(pixel_values[i : i + batch], batch)) for i in range(0, len(pixel_values), batch)]
        return {
            record.name: np.concatenate([part[record.name] for part in parts])[: len(pixel_values)]
            for record in self.manifest.outputs
        }

    def encode(self, images: Image | Iterable[Image]) -> dict[str, FloatArray]:
        """Encodes images: file paths, or uint8 RGB arrays [height, width, 3] of any size; see `stream` for many.

        Args:
            images: One, several, or a folder: all images below it, as `list_images` orders them.

        Raises:
            ImageSetError: No image is in the folder.
            ImageError: A file cannot be read.
            InputShapeError: No image, or an array that is not an RGB image.
        """
        parts = list(self.stream(images))
        if not parts:
            raise InputShapeError("encode: expected at least one image, found none")
        return {record.name: np.concatenate([part[record.name] for part in parts]) for record in self.manifest.outputs}

    def stream(
        self,
        images: Image | Iterable[Image],
        *,
        batch: int = BATCH,
        skip: Callable[[int, ImageError], None] | None = None,
    ) -> Generator[dict[str, FloatArray], None, None]:
        """Encodes any number of images, in order, in memory that does not grow with their number.

        Threads read and preprocess the next images while the runtime works, at most `batch` of them ahead. So `images`
        may be endless. The threads end with the iteration: at its end, at an error, or when the generator is closed.

        Args:
            images: File paths, or uint8 RGB arrays [height, width, 3] of any size; or a folder, see `encode`.
                Iterated in the caller's thread, ahead of the outputs: an array must not be written to before its
                outputs are there.
            batch: Images that run at a time, at least 1.
            skip: Called with the place, from 0, of an image that cannot be read, and why; there are no outputs for it.
                None raises the error instead.

        Yields:
            The outputs of the next `batch` images, of fewer at the end.

        Raises:
            ImageSetError: No image is in the folder.
            ImageError: A file cannot be read. The batches before its own have been yielded.
            InputShapeError: An array that is not an RGB image, at its place likewise; or a batch of no images.
        """
        if batch < 1:
            raise InputShapeError(f"batch: expected at least 1, found {batch}")
        listed: Iterable[Image]
        if isinstance(images, (str, PathLike)):
            listed = list_images(Path(images)) if Path(images).is_dir() else [images]
        else:
            listed = [images] if isinstance(images, np.ndarray) else images
        part = []
        with closing(_ahead(self._preprocessed, listed, batch)) as results:
            for index, result in enumerate(results):
                try:
                    part.append(result.result())
                except ImageError as error:
                    if skip is None:
                        raise
                    skip(index, error)
                if len(part) == batch:
                    yield self(np.stack(part))
                    part = []
        if part:
            yield self(np.stack(part))

    def _preprocessed(self, image: Image) -> NDArray[Any]:
        return self.manifest.preprocessing(image if isinstance(image, np.ndarray) else read_image(image))

    def _check_runtime(self) -> None:
        """Refuses a runtime that is absent or older than the manifest's minimum."""
        distribution = DISTRIBUTIONS[self.runtime]
        version = installed_version(distribution)
        if version is None:
            raise RuntimeMissingError(
                f"{distribution} is not installed; install it with: pip install 'vitedge[{self.runtime}]'"
            )
        if is_older(version, self.manifest.minimum_runtime):
            raise RuntimeMissingError(
                f"{distribution} {version} is older than {self.manifest.minimum_runtime}, which this artifact"
                f" needs; upgrade it with: pip install -U 'vitedge[{self.runtime}]'"
            )


def installed_version(distribution: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_older(version: str, minimum: str) -> bool:
    """Whether a dotted version comes before another."""
    found, needed = ([int(part) for part in re.findall(r"\d+", f"{text}.0.0")[:3]] for text in (version, minimum))
    return found < needed


def _ahead(
    function: Callable[[Image], NDArray[Any]], images: Iterable[Image], count: int
) -> Generator[Future[NDArray[Any]], None, None]:
    """The function of each image, in order; threads compute it for up to `count` images ahead."""
    waiting: deque[Future[NDArray[Any]]] = deque()
    pool = ThreadPoolExecutor(READERS, "vitedge-reader")
    try:
        for image in images:
            waiting.append(pool.submit(function, image))
            if len(waiting) > count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _padded(pixel_values: NDArray[Any], batch: int) -> NDArray[Any]:
    """The last part of a fixed batch, filled up with zeros whose outputs are dropped."""
    missing = batch - len(pixel_values)
    if missing:
        zeros = np.zeros((missing, *pixel_values.shape[1:]), pixel_values.dtype)
        pixel_values = np.concatenate((pixel_values, zeros))
    return np.ascontiguousarray(pixel_values)
