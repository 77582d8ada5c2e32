"""Trains the demo's classifier on scikit-learn's digits, and writes it with its images into `calibration/demo/`.

The data: 1797 handwritten digits of 8×8 pixels in 17 grays (UCI "Optical Recognition of Handwritten Digits", test part,
as `sklearn.datasets.load_digits` ships it). Each is enlarged to a 32×32 PNG, so that the demo reads files as it would
read a user's. A fifth is the test split, all of which ships as the evaluation images; 70 training images ship for
calibration. Copies by content across the splits are dropped from the training side.

The model: a `ViTForImageClassification` of 6 layers of width 80 on 8×8 patches, under 2 MB in float32. Small shifts of
the training images are the only augmentation.

    python -m vitedge.benchmarks.train_demo --out calibration/demo
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ViTConfig, ViTForImageClassification

from vitedge.calibration.images import batches, scan
from vitedge.runtimes.preprocess import Preprocessing

SIDE, CALIBRATION_PER_DIGIT, FLOOR = 32, 7, 0.95
CALIBRATION_IMAGES = 10 * CALIBRATION_PER_DIGIT
CONTRACT = Preprocessing(SIDE, SIDE, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CONFIG = ViTConfig(
    image_size=SIDE,
    patch_size=8,
    hidden_size=80,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=240,
    num_labels=10,
    id2label={digit: str(digit) for digit in range(10)},
    label2id={str(digit): digit for digit in range(10)},
)


def enlarged(digits: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[n, 8, 8] with values 0 to 16 to uint8 [n, 32, 32]."""
    gray = np.rint(digits * 255 / 16).astype(np.uint8)
    return np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in gray])


def splits(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Training images and labels, test images and labels; no image is in both."""
    data = load_digits()
    images, labels = enlarged(data.images), data.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    held_out = {images[index].tobytes() for index in test}
    train = np.array([index for index in train if images[index].tobytes() not in held_out])
    return images[train], labels[train], images[test], labels[test]


def train(images: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int, seed: int) -> ViTForImageClassification:
    """Trains from scratch; the same seed on the same machine gives the same model."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(CONFIG)
    pixels = torch.from_numpy(CONTRACT.batch([np.repeat(image[..., None], 3, axis=2) for image in images]))
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(targets) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.split(torch.randperm(len(targets)), 64):
            optimizer.zero_grad()
            logits = model(shifted(pixels[chosen])).logits
            loss = torch.nn.functional.cross_entropy(logits, targets[chosen], label_smoothing=0.05)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        print(f"epoch {epoch + 1:3} of {epochs}: loss {total / len(targets):.4f}", file=sys.stderr)
    return model.eval()


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to 3 pixels each way; black comes in."""
    padded = torch.nn.functional.pad(pixels, (3, 3, 3, 3), value=-1.0)
    offsets = torch.randint(0, 7, (len(pixels), 2))
    return torch.stack(
        [image[:, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )


def write_images(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """PNGs in a sub-folder per digit."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        target = folder / str(label)
        target.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target / f"{index:04}.png"), image)


def accuracy(model: ViTForImageClassification, folder: Path) -> float:
    """Top-1 over the PNGs of a folder, read as the product reads them."""
    images = scan(folder, None)
    with torch.inference_mode():
        logits = torch.cat([model(torch.from_numpy(pixels)).logits for pixels in batches(images, CONTRACT, 64)])
    return float(np.mean([str(int(top)) == label for top, label in zip(logits.argmax(1), images.labels, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    train_images, train_labels, test_images, test_labels = splits(arguments.seed)
    model = train(train_images, train_labels, arguments.epochs, arguments.seed)
    for part in ("model", "images"):
        shutil.rmtree(arguments.out / part, ignore_errors=True)
    write_images(arguments.out / "images" / "evaluation", test_images, test_labels)
    chosen = np.concatenate([np.flatnonzero(train_labels == digit)[:CALIBRATION_PER_DIGIT] for digit in range(10)])
    write_images(arguments.out / "images" / "calibration", train_images[chosen], train_labels[chosen])
    model.save_pretrained(arguments.out / "model")
    contract = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_rescale": True}
    contract |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    text = json.dumps({"image_processor_type": "ViTImageProcessor", **contract}, indent=2)
    (arguments.out / "model" / "preprocessor_config.json").write_text(text + "\n")
    loaded = ViTForImageClassification.from_pretrained(arguments.out / "model").eval()
    top1 = accuracy(loaded, arguments.out / "images" / "evaluation")
    size = sum(path.stat().st_size for path in (arguments.out / "model").iterdir())
    result = {"top1": top1, "test_images": len(test_labels), "size_bytes": size, "seconds": time.perf_counter() - start}
    print(json.dumps(result))
    if top1 < FLOOR:
        sys.exit(f"top-1 {top1:.3f} is below {FLOOR}")


if __name__ == "__main__":
    main()
