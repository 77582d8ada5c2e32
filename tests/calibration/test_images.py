"""Folders of images: their order, the even choice, what cannot be read, and copies known by content."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import save_images
from vitedge.calibration.images import (
    RECOMMENDED_IMAGES,
    ImageSet,
    batches,
    hold_out,
    refuse_overlap,
    scan,
    spread,
    too_few_warning,
)
from vitedge.runtimes.errors import ImageSetError
from vitedge.runtimes.image import read_image
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.preprocess import Preprocessing

CONTRACT = Preprocessing(16, 24, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_plain(path: Path, value: int, *, compression: int = 3) -> Path:
    """An image of one color; equal values are equal content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, compression])
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names(images: ImageSet) -> list[str]:
    return [path.relative_to(images.folder).as_posix() for path in images.paths]


# Listing


def test_order_is_that_of_the_paths_whatever_the_file_system_says(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/z.JPG", "a/y/deep.webp", "c.jpeg", "a.bmp", "B.PNG", "10.png", "9.png")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    # As text and by code point: "." sorts before "/", capitals before small letters, "10" before "9".
    assert found == ["10.png", "9.png", "B.PNG", "a.bmp", "a/y/deep.webp", "a/z.JPG", "b.png", "c.jpeg"]


def test_leaves_out_what_is_hidden_or_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".b.png", ".thumbnails/c.png", "d/.e/f.png", "notes.txt", "g.gif", "png", "._h.jpg")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    assert list_images(tmp_path) == (tmp_path / "a.png",)


def test_a_hidden_folder_can_be_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/a.png")
    assert list_images(tmp_path / ".cache") == (tmp_path / ".cache/a.png",)


def test_links_to_folders_are_not_followed_and_links_to_files_are(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/1.png", "elsewhere/2.png")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/linked.png").symlink_to(tmp_path / "elsewhere/2.png")
    found = [path.relative_to(tmp_path / "set").as_posix() for path in list_images(tmp_path / "set")]
    assert found == ["a/1.png", "linked.png"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "set/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert list_images(tmp_path / "link") == (tmp_path / "link/1.png",)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"/nowhere: no such folder; expected one with images \(\.jpg, .*\.bmp\)$"):
        scan(tmp_path / "nowhere", None)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"/a\.png: no such folder; expected one with images"):
        scan(write_plain(tmp_path / "a.png", 1), None)


@pytest.mark.parametrize("files", [(), ("notes.txt", "sub/labels.csv"), (".hidden.png",)])
def test_folder_without_images(tmp_path: Path, files: tuple[str, ...]) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ImageSetError, match=r": no images in it or below; expected \.jpg, "):
        scan(tmp_path, 8)


# Spreading


def numbered(count: int) -> list[Path]:
    return [Path(str(index)) for index in range(count)]


def chosen(total: int, count: int | None) -> list[int]:
    return [int(path.name) for path in spread(numbered(total), count)]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 1, [5]),
        (10, 2, [2, 7]),
        (10, 3, [1, 5, 8]),
        (10, 5, [1, 3, 5, 7, 9]),
        (10, 9, [0, 1, 2, 3, 5, 6, 7, 8, 9]),
        (10, 10, list(range(10))),
        (3, 8, [0, 1, 2]),
        (4, None, [0, 1, 2, 3]),
    ],
)
def test_spread_takes_the_middle_of_each_equal_part(total: int, count: int | None, expected: list[int]) -> None:
    assert chosen(total, count) == expected


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_spread_is_even(total: int, count: int) -> None:
    """Sorted, distinct, and no gap (also at either end) differs from another by more than rounding."""
    found = chosen(total, count)
    assert len(found) == min(count, total)
    assert found == sorted(set(found))
    step = total / len(found)
    assert 0 <= found[0] <= step / 2
    assert total - 1 - found[-1] <= step / 2
    assert all(step - 1 < gap < step + 1 for gap in np.diff(found))


def test_spread_over_classes_takes_as_many_of_each(tmp_path: Path) -> None:
    images = scan(save_images(tmp_path, 60, classes=4), 12)
    assert {label: images.labels.count(label) for label in images.labels} == dict.fromkeys(
        ("class0", "class1", "class2", "class3"), 3
    )


# Reading


def test_scan_says_what_it_read(tmp_path: Path) -> None:
    save_images(tmp_path, 6, classes=2)
    done: list[int] = []
    images = scan(tmp_path, None, done.append)
    assert done == [1] * 6
    assert names(images) == [f"class{label}/image{index:03}.png" for label in (0, 1) for index in range(label, 6, 2)]
    assert images.labels == ("class0",) * 3 + ("class1",) * 3
    assert len(set(images.digests)) == 6
    assert images.skipped == ()


def test_labels_need_two_sub_folders_and_every_image_in_one(tmp_path: Path) -> None:
    write_plain(tmp_path / "one/a.png", 1)
    write_plain(tmp_path / "one/deeper/b.png", 2)
    assert scan(tmp_path, None).labels == ()  # one class is none
    write_plain(tmp_path / "two/deeper/c.png", 3)
    assert scan(tmp_path, None).labels == ("one", "one", "two")
    write_plain(tmp_path / "stray.png", 4)
    assert scan(tmp_path, None).labels == ()


def test_a_single_image(tmp_path: Path) -> None:
    write_plain(tmp_path / "only.png", 7)
    images = scan(tmp_path, 128)
    assert names(images) == ["only.png"]
    assert hold_out(images, 10) is None
    (batch,) = batches(images, CONTRACT, 8)
    np.testing.assert_allclose(batch, np.full((1, 3, 16, 24), 7 / 255 / 0.5 - 1), atol=1e-6)


def test_one_truncated_image_of_100_is_skipped_and_named(tmp_path: Path) -> None:
    for index in range(100):
        write_plain(tmp_path / f"{index:03}.jpg", index)
    truncate(tmp_path / "042.jpg")
    done: list[int] = []
    images = scan(tmp_path, None, done.append)
    assert sum(done) == 100
    assert len(images.paths) == len(images.digests) == 99
    ((path, reason),) = images.skipped
    assert path == tmp_path / "042.jpg"
    assert reason.startswith("a truncated or damaged JPEG file (")
    assert path not in images.paths
    assert sum(len(batch) for batch in batches(images, CONTRACT, 16)) == 99


def test_a_picture_counts_once(tmp_path: Path) -> None:
    for index in range(40):
        write_plain(tmp_path / f"{index:03}.png", index // 20)
    images = scan(tmp_path, None)
    assert names(images) == ["000.png", "020.png"]
    assert len(images.skipped) == 38
    assert images.skipped[-1] == (tmp_path / "039.png", f"the same picture as {tmp_path / '020.png'}")
    assert str(too_few_warning(images)).startswith("only 2 different calibration images")


def test_up_to_five_percent_may_be_bad(tmp_path: Path) -> None:
    for index in range(100):
        write_plain(tmp_path / f"{index:03}.png", index)
    for index in range(5):
        (tmp_path / f"{index:03}.png").write_bytes(b"")
    assert len(scan(tmp_path, None).skipped) == 5


def test_six_of_100_bad_stop_the_scan(tmp_path: Path) -> None:
    for index in range(100):
        write_plain(tmp_path / f"{index:03}.png", index)
    for index in range(10, 70, 10):
        truncate(tmp_path / f"{index:03}.png")
    with pytest.raises(ImageSetError) as caught:
        scan(tmp_path, None)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: 6 of 100 images cannot be read, more than 5%: 010.png: a truncated or ")
    assert [name in message for name in ("010.png", "020.png", "030.png", "040.png")] == [True, True, True, False]


def test_the_share_is_of_the_images_taken(tmp_path: Path) -> None:
    """One bad image of 40, but of the 4 that were asked for it is a quarter."""
    for index in range(40):
        write_plain(tmp_path / f"{index:03}.png", index)
    truncate(tmp_path / "005.png")
    assert len(scan(tmp_path, None).skipped) == 1
    with pytest.raises(ImageSetError, match=r"1 of 4 images cannot be read"):
        scan(tmp_path, 4)


def test_batches_hold_every_image_once_in_order(tmp_path: Path) -> None:
    for index in range(7):
        write_plain(tmp_path / f"{index}.png", 30 * index)
    images = scan(tmp_path, None)
    found = list(batches(images, CONTRACT, 3))
    assert [batch.shape for batch in found] == [(3, 3, 16, 24), (3, 3, 16, 24), (1, 3, 16, 24)]
    whole = np.concatenate(found)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, CONTRACT.batch([read_image(path) for path in images.paths]))
    assert (np.diff(whole[:, 0, 0, 0]) > 0).all()


# Content


def test_digest_is_of_the_contents_only(tmp_path: Path) -> None:
    for value, name in ((10, "a"), (20, "b"), (30, "c")):
        write_plain(tmp_path / f"one/{name}.png", value)
    for value, name in ((30, "x"), (10, "y"), (20, "sub/z")):
        write_plain(tmp_path / f"two/{name}.png", value, compression=9)
    first, second = scan(tmp_path / "one", None), scan(tmp_path / "two", None)
    assert first.digests != second.digests
    assert first.digest == second.digest
    write_plain(tmp_path / "two/y.png", 11)
    assert scan(tmp_path / "two", None).digest != first.digest


def test_the_same_values_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    for name, shape in (("wide", (4, 16, 3)), ("tall", (16, 4, 3))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full(shape, 5, np.uint8))
    assert len(set(scan(tmp_path, None).digests)) == 2


def test_hold_out_shares_no_picture_with_calibration(tmp_path: Path) -> None:
    """Every picture is there twice, under different names and compressions."""
    for index in range(20):
        write_plain(tmp_path / f"{index:03}.png", 10 * index)
        write_plain(tmp_path / f"{index:03}copy.png", 10 * index, compression=9)
    taken = scan(tmp_path, 8)
    rest = hold_out(taken, 1000)
    assert rest is not None
    assert not set(rest.digests) & set(taken.digests)
    assert len(rest.paths) == len(rest.digests) == 20 - 8
    refuse_overlap(taken, rest)


def test_a_record_knows_its_pictures_again(tmp_path: Path) -> None:
    for index in range(6):
        write_plain(tmp_path / f"{index % 2}/{index}.png", 10 * index)
    taken, all_of_them = scan(tmp_path, 2), scan(tmp_path, None)
    seen = taken.record["seen"]
    assert isinstance(seen, list)
    assert [len(digest) for digest in seen] == [16, 16]
    rest = all_of_them.unseen(seen)
    assert rest.paths == tuple(path for path in all_of_them.paths if path not in taken.paths)
    assert set(rest.digests) == set(all_of_them.digests) - set(taken.digests)
    assert rest.labels == tuple(path.parent.name for path in rest.paths)
    assert all_of_them.unseen(all_of_them.digests).paths == ()


def test_hold_out_takes_what_is_left_evenly(tmp_path: Path) -> None:
    for index in range(20):
        write_plain(tmp_path / f"{index % 2}/{index:03}.png", 10 * index)
    taken = scan(tmp_path, 10)
    rest = hold_out(taken, 4)
    assert rest is not None
    left = sorted(set(names(scan(tmp_path, None))) - set(names(taken)))
    assert names(rest) == [left[index] for index in (1, 3, 6, 8)]
    assert rest.labels == ("0", "0", "1", "1")


def test_hold_out_of_copies_only_is_none(tmp_path: Path) -> None:
    for index in range(10):
        write_plain(tmp_path / f"{index}.png", index // 2)
    taken = scan(tmp_path, 5)
    assert len(set(taken.digests)) == 5
    assert hold_out(taken, 5) is None


def test_hold_out_does_not_try_a_bad_image_again(tmp_path: Path) -> None:
    for index in range(40):
        write_plain(tmp_path / f"{index:03}.png", index)
    truncate(tmp_path / "001.png")
    taken = scan(tmp_path, 20)
    assert [path.name for path, _ in taken.skipped] == ["001.png"]
    rest = hold_out(taken, 100)
    assert rest is not None
    assert len(rest.paths) == 20
    assert rest.skipped == ()


def test_hold_out_of_one_class_has_no_labels(tmp_path: Path) -> None:
    """All that is left of the other class are copies; k-NN over one class would be 100 % whatever the encoder does."""
    for index in range(4):
        write_plain(tmp_path / f"a/{index}.png", 10)
        write_plain(tmp_path / f"b/{index}.png", 100 + index)
    taken = scan(tmp_path, 4)
    assert set(taken.labels) == {"a", "b"}
    rest = hold_out(taken, 100)
    assert rest is not None
    assert {path.parent.name for path in rest.paths} == {"b"}
    assert rest.labels == ()


def test_same_bytes_under_another_name_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        write_plain(tmp_path / f"calibration/{index}.png", index)
        write_plain(tmp_path / f"evaluation/{index}.png", 100 + index)
    copy = tmp_path / "evaluation/sub/innocent.png"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "calibration/2.png").read_bytes())
    with pytest.raises(ImageSetError) as caught:
        refuse_overlap(scan(tmp_path / "calibration", None), scan(tmp_path / "evaluation", None))
    message = str(caught.value)
    assert message.startswith("1 evaluation images are calibration images too, such as ")
    assert str(copy) in message
    assert str(tmp_path / "calibration/2.png") in message


def test_same_pixels_saved_anew_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    for folder, options in (("a", ["x.png", cv2.IMWRITE_PNG_COMPRESSION, 0]), ("b", ["y.bmp"])):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / str(options[0])), noise, [int(option) for option in options[1:]])
    assert (tmp_path / "a/x.png").read_bytes() != (tmp_path / "b/y.bmp").read_bytes()
    with pytest.raises(ImageSetError, match=r"y\.bmp, the same picture as .*x\.png"):
        refuse_overlap(scan(tmp_path / "a", None), scan(tmp_path / "b", None))


def test_same_names_with_other_pictures_are_fine(tmp_path: Path) -> None:
    for index in range(4):
        write_plain(tmp_path / f"calibration/{index}.png", index)
        write_plain(tmp_path / f"evaluation/{index}.png", 100 + index)
    refuse_overlap(scan(tmp_path / "calibration", None), scan(tmp_path / "evaluation", None))


@pytest.mark.parametrize(("count", "warns"), [(1, True), (RECOMMENDED_IMAGES - 1, True), (RECOMMENDED_IMAGES, False)])
def test_few_images_warn(tmp_path: Path, count: int, warns: bool) -> None:
    for index in range(count):
        write_plain(tmp_path / f"{index:03}.png", index)
    warning = too_few_warning(scan(tmp_path, None))
    expected = f"only {count} different calibration images: ranges may be too narrow for other images; at least 32 are"
    assert (warning or "").startswith(expected) if warns else warning is None


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be allowed everything, so that the refusal is made up."""
    save_images(tmp_path / "class0", 2)
    save_images(tmp_path / "class1", 2)
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("class1"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageSetError, match=r"class1: cannot be read \(Permission denied\)"):
        scan(tmp_path, None)
