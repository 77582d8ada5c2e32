"""Streams of images: in order, read ahead while the runtime works, bounded, and ended cleanly however they end."""

import re
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.runtimes.conftest import Artifacts
from tests.runtimes.pictures import Pixels, smooth
from vitedge.converters.lower import RUNTIMES
from vitedge.quantization.encoder import FloatArray
from vitedge.runtimes import encoder as encoder_module
from vitedge.runtimes.encoder import RuntimeEncoder
from vitedge.runtimes.errors import ImageError, InputShapeError
from vitedge.runtimes.image import read_image
from vitedge.runtimes.load import load_encoder

SECONDS = 20.0  # after which a test that would wait forever fails
# As in test_encoders.py: a value on the edge of a rounding may flip when kernels add in another order.
TOLERANCE, DISTINCT = 0.02, 2.0


@pytest.fixture(params=RUNTIMES)
def any_encoder(request: pytest.FixtureRequest, artifacts: Artifacts) -> RuntimeEncoder:
    return load_encoder(artifacts.folders[str(request.param)], threads=1)


@pytest.fixture
def encoder(artifacts: Artifacts) -> RuntimeEncoder:
    return load_encoder(artifacts.folders["onnx"], threads=1)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """A runtime's own threads are not Python's; whatever Python started during a test must have ended with it."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def photographs(folder: Path, number: int) -> list[Path]:
    paths = [folder / f"{index:03}.png" for index in range(number)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), smooth(20 + index, 60 - index, seed=index))
    return paths


def endless(seen: list[int]) -> Iterator[Pixels]:
    for index in count():
        seen.append(index)
        yield smooth(24, 24, seed=index)


def joined(batches: list[dict[str, FloatArray]]) -> dict[str, FloatArray]:
    return {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_batches_are_the_images_one_by_one_in_order(any_encoder: RuntimeEncoder, tmp_path: Path, batch: int) -> None:
    paths = photographs(tmp_path, 19)
    singles = joined([any_encoder.encode(path) for path in paths])
    batches = list(any_encoder.stream(iter(paths), batch=batch))
    assert [len(part["logits"]) for part in batches] == [min(batch, 19 - start) for start in range(0, 19, batch)]
    for name, values in singles.items():
        np.testing.assert_allclose(joined(batches)[name], values, atol=TOLERANCE, rtol=0, err_msg=name)
    tokens = singles["last_hidden_state"]
    assert min(np.abs(one - other).max() for one, other in pairwise(tokens)) > DISTINCT


def test_encode_is_the_stream_in_one_piece(any_encoder: RuntimeEncoder, tmp_path: Path) -> None:
    paths = photographs(tmp_path, 19)
    streamed, encoded = joined(list(any_encoder.stream(paths))), any_encoder.encode(iter(paths))
    for name, values in encoded.items():
        np.testing.assert_array_equal(streamed[name], values)


def test_paths_and_arrays_may_be_mixed_and_one_image_needs_no_list(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    first, second = photographs(tmp_path, 2)
    (mixed,) = encoder.stream([str(first), read_image(second)])
    for index, image in enumerate((str(first), second)):
        (alone,) = encoder.stream(image)
        np.testing.assert_allclose(mixed["logits"][[index]], alone["logits"], atol=TOLERANCE)


def test_no_image_gives_no_batch(encoder: RuntimeEncoder) -> None:
    assert list(encoder.stream([])) == []


@pytest.mark.parametrize("batch", [0, -1])
def test_refuses_batches_of_nothing(encoder: RuntimeEncoder, batch: int) -> None:
    with pytest.raises(InputShapeError, match=f"^batch: expected at least 1, found {batch}$"):
        next(encoder.stream([smooth(8, 8)], batch=batch))


@pytest.mark.parametrize("batch", [1, 4])
def test_an_endless_source_is_read_one_batch_ahead_and_no_further(encoder: RuntimeEncoder, batch: int) -> None:
    seen: list[int] = []
    stream = encoder.stream(endless(seen), batch=batch)
    assert not seen
    for done, _ in enumerate(islice(stream, 5), start=1):
        assert len(seen) == (done + 1) * batch
    stream.close()
    assert len(seen) == 6 * batch


def test_images_are_let_go(encoder: RuntimeEncoder) -> None:
    """Whatever the length of a stream: of decoded images, only those that are yet to be preprocessed are alive."""
    references: list[weakref.ref[Pixels]] = []

    def images() -> Iterator[Pixels]:
        for seed in range(60):
            image = smooth(24, 24, seed=seed)
            references.append(weakref.ref(image))
            yield image

    for _ in encoder.stream(images(), batch=4):
        # Four ahead, the one that the generator above still names, and what two threads may not yet have dropped.
        assert sum(reference() is not None for reference in references) <= 4 + 1 + 2
    assert len(references) == 60
    assert not any(reference() is not None for reference in references)


def test_the_next_batch_is_read_while_the_runtime_works(
    encoder: RuntimeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime waits within its first batch until an image of the second is read, which waits for the runtime."""
    paths = photographs(tmp_path, 8)
    running, read = threading.Event(), threading.Event()
    real = encoder._run

    def read_slowly(path: Path) -> Pixels:
        if path == paths[4]:
            assert running.wait(SECONDS), "read ahead, but not while the runtime works"
            read.set()
        return read_image(path)

    def run_slowly(pixel_values: FloatArray) -> Any:
        running.set()
        assert read.wait(SECONDS), "nothing is read while the runtime works"
        return real(pixel_values)

    monkeypatch.setattr(encoder_module, "read_image", read_slowly)
    monkeypatch.setattr(encoder, "_run", run_slowly)
    assert [len(part["logits"]) for part in encoder.stream(paths, batch=4)] == [4, 4]


def test_two_images_are_read_at_a_time(
    encoder: RuntimeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)

    def read_with_another(path: Path) -> Pixels:
        together.wait(SECONDS)  # breaks, and so raises, if no second thread comes
        return read_image(path)

    monkeypatch.setattr(encoder_module, "read_image", read_with_another)
    assert len(encoder.encode(photographs(tmp_path, 6))["logits"]) == 6


def test_order_survives_images_that_take_longer_than_their_neighbours(
    encoder: RuntimeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = photographs(tmp_path, 6)
    expected = encoder.encode(paths)
    second = threading.Event()

    def first_comes_last(path: Path) -> Pixels:
        if path == paths[0]:
            assert second.wait(SECONDS)
        elif path == paths[3]:
            second.set()
        return read_image(path)

    monkeypatch.setattr(encoder_module, "read_image", first_comes_last)
    for name, values in encoder.encode(paths).items():
        np.testing.assert_array_equal(values, expected[name])


def test_an_unreadable_image_is_told_at_its_place(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    paths = photographs(tmp_path, 12)
    paths[7].write_bytes(paths[7].read_bytes()[:60])
    stream, done = encoder.stream(paths, batch=3), 0
    with pytest.raises(ImageError, match=rf"^{re.escape(str(paths[7]))}: a truncated or damaged PNG file"):
        for part in stream:
            done += len(part["logits"])
    assert done == 6  # the two batches before that of image 7
    assert next(stream, None) is None


def test_an_array_that_is_no_image_is_told_at_its_place(encoder: RuntimeEncoder) -> None:
    stream = encoder.stream([smooth(8, 8), smooth(8, 8).astype(np.float32)], batch=1)
    assert len(next(stream)["logits"]) == 1
    with pytest.raises(InputShapeError, match=r"^image: expected uint8 \[.*\], found float32"):
        next(stream)


def test_unreadable_images_may_be_skipped(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    paths = photographs(tmp_path, 12)
    for bad in (0, 5, 11):
        paths[bad].write_bytes(b"")
    skipped: list[tuple[int, str]] = []
    stream = encoder.stream(paths, batch=4, skip=lambda index, error: skipped.append((index, str(error))))
    found = joined(list(stream))
    assert [index for index, _ in skipped] == [0, 5, 11]
    assert all(f"{paths[index]}: expected an image, found an empty file" in text for index, text in skipped)
    expected = encoder.encode([path for index, path in enumerate(paths) if index not in (0, 5, 11)])
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=TOLERANCE)


def test_what_is_no_image_at_all_is_not_skipped(encoder: RuntimeEncoder) -> None:
    with pytest.raises(InputShapeError, match="found float32"):
        list(encoder.stream([smooth(8, 8).astype(np.float32)], skip=lambda index, error: None))


def test_an_error_of_the_source_or_the_runtime_ends_it(
    encoder: RuntimeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Pixels]:
        yield smooth(8, 8)
        raise LookupError("the camera is gone")

    with pytest.raises(LookupError, match="the camera is gone"):
        list(encoder.stream(broken()))

    def fail(pixel_values: FloatArray) -> Any:
        raise LookupError("the runtime is gone")

    monkeypatch.setattr(encoder, "_run", fail)
    with pytest.raises(LookupError, match="the runtime is gone"):
        list(encoder.stream(endless([])))


@pytest.mark.parametrize("how", ["closed", "dropped", "left"])
def test_a_consumer_may_stop_early(encoder: RuntimeEncoder, how: str) -> None:
    """`no_thread_stays` checks the rest."""
    stream = encoder.stream(endless([]), batch=2)
    if how == "left":
        for _ in stream:
            break
    else:
        next(stream)
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("vitedge-reader")]
    assert len(readers) == 2
    if how == "closed":
        stream.close()
        assert next(stream, None) is None
    else:
        del stream
    assert not any(reader.is_alive() for reader in readers)


def test_closing_waits_for_no_more_than_what_is_being_read(
    encoder: RuntimeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two images at work are finished, those that wait are not begun."""
    paths = photographs(tmp_path, 12)
    begun: list[Path] = []
    release = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            release.set()
            super().shutdown(wait=wait)

    def read_when_released(path: Path) -> Pixels:
        begun.append(path)
        assert path in paths[:4] or release.wait(SECONDS)
        return read_image(path)

    monkeypatch.setattr(encoder_module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(encoder_module, "read_image", read_when_released)
    stream = encoder.stream(paths, batch=4)
    next(stream)
    stream.close()
    assert set(begun) <= set(paths[: 4 + 2])


def test_streams_of_one_encoder_do_not_mix(any_encoder: RuntimeEncoder, tmp_path: Path) -> None:
    paths = photographs(tmp_path, 12)
    expected = any_encoder.encode(paths)["logits"]
    both = zip(any_encoder.stream(paths, batch=4), any_encoder.stream(paths[::-1], batch=4), strict=True)
    forward, backward = zip(*((one["logits"], other["logits"]) for one, other in both), strict=True)
    np.testing.assert_allclose(np.concatenate(forward), expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.concatenate(backward)[::-1], expected, atol=TOLERANCE)
