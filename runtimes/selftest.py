"""Does an artifact do here what it did on the host? Each step is judged on its own, and a failure has a likely cause.

    files           are they the ones that were made?                        sizes and SHA-256
    decoding        are the PNGs decoded to the same pixels?                 equal; needs OpenCV, else skipped
    cpu             is each artifact exact on this kind of CPU?              certificate of saturation; before it runs
    preprocessing   does each artifact's contract give the golden input?     pixels equal, floats to 1e-6
    inference       is every output as near to FP32 as it may be?            cosine and SQNR within the tolerance

Bounds are against FP32: floats round otherwise on another CPU, and with them which integer a value becomes, so that
equal bits are not asked for.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.encoder import DISTRIBUTIONS, installed_version, is_older
from vitedge.runtimes.errors import ArtifactError, ImageError, RuntimeMissingError, VitedgeError
from vitedge.runtimes.golden import Golden, Tolerance
from vitedge.runtimes.image import read_image
from vitedge.runtimes.instruction_sets import ANY, X86
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest

Status = Literal["pass", "fail", "skip"]
_MAX_INPUT_ERROR = 1e-6
_FIRST = "last_hidden_state"  # the output that every encoder has


class Fidelity(NamedTuple):
    """An output's to FP32: the worst cosine of the images' vectors, and SQNR in dB over all values."""

    cosine_worst: float
    sqnr_db: float


@dataclass(frozen=True)
class Check:
    """One step: what was found in words and in numbers, and what a failure most likely comes from."""

    step: str
    artifact: str | None
    status: Status
    found: str
    cause: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def selftest(
    golden: Golden,
    artifacts: Mapping[str, tuple[Path, Manifest]],
    *,
    kind: str,
    threads: int | None = None,
) -> tuple[Check, ...]:
    """Judges every step but the files, which `judge_files` does before anything is read from them.

    Args:
        golden: Golden vectors with outputs and tolerances of the artifacts.
        artifacts: Folder and manifest by the name that the golden vectors know them by.
        kind: Of this CPU (`instruction_sets.kind_of`).
        threads: Of the runtimes; None leaves it to them.

    Raises:
        ArtifactError: The golden vectors do not know one of the artifacts.
    """
    if unknown := artifacts.keys() - (golden.tolerances.keys() & golden.outputs.keys()):
        raise ArtifactError(f"{golden.folder}: expected golden vectors of {', '.join(sorted(unknown))}, found none")
    checks = [_decoding(golden)]
    for name, (folder, manifest) in artifacts.items():
        checks.append(_cpu(golden, name, manifest, kind))
        checks.append(_preprocessing(golden, name, manifest))
        checks.append(_inference(golden, name, folder, manifest, kind, threads))
    return tuple(checks)


def passed(checks: Collection[Check]) -> bool:
    """Whether nothing failed, and at least one artifact ran."""
    ran = any(check.step == "inference" and check.status == "pass" for check in checks)
    return ran and all(check.status != "fail" for check in checks)


def judge_files(damages: Mapping[str, str]) -> Check:
    """The step `files`; where it fails, what is read from them says nothing about the device.

    Args:
        damages: What is wrong with files, by path (`Bundle.damages`).
    """
    if not damages:
        return Check("files", None, "pass", "every file is the one that was made")
    named = "; ".join(f"{name}: {what}" for name, what in list(damages.items())[:3])
    return Check("files", None, "fail", named, "truncated or changed in transit: copy the bundle again")


def _decoding(golden: Golden) -> Check:
    different = []
    for image in golden.images:
        try:
            pixels = read_image(golden.folder / image.file)
        except RuntimeMissingError:
            return Check("decoding", None, "skip", "OpenCV is not installed; the pixels are tested as they are")
        except ImageError as error:
            return Check("decoding", None, "fail", str(error), "the decoder: this OpenCV was built without PNG")
        if not np.array_equal(pixels, golden.pixels(image)):
            different.append(image.file)
    if different:
        found = f"{len(different)} of {len(golden.images)} PNGs have other pixels, such as {different[0]}"
        return Check("decoding", None, "fail", found, "the decoder: OpenCV of another build changes colors or channels")
    return Check("decoding", None, "pass", f"{len(golden.images)} PNGs have the same pixels")


def _cpu(golden: Golden, name: str, manifest: Manifest, kind: str) -> Check:
    """Judged by the manifest, as what saturates may do so on other images than the golden ones."""
    unsafe = manifest.saturation.unsafe
    if kind == X86 and kind not in manifest.exact_in_wrapper:
        names = ", ".join(list(unsafe)[:3]) + (", …" if len(unsafe) > 3 else "")
        found = (
            f"made for {manifest.target}; this CPU is x86 without VNNI and adds pairs of products in 16 bits, which"
            f" {len(unsafe)} integer products can exceed ({names})"
        )
        return Check("cpu", name, "fail", found, "saturation: build with --target avx2")
    if kind == ANY:
        but = "" if X86 in manifest.exact_in_wrapper else "; the artifact is not exact on x86 CPUs without VNNI"
        return Check("cpu", name, "skip", f"this CPU is of no kind that vitedge knows{but}")
    if kind not in golden.tolerances[name]:
        found = f"expected a tolerance for {kind}, found {', '.join(golden.tolerances[name])}"
        return Check("cpu", name, "fail", found, "the bundle was made by an older vitedge: make it again")
    slower = "" if kind in manifest.instruction_sets else ", by slower kernels: --target avx2 is faster here"
    return Check("cpu", name, "pass", f"{kind}: the integer sums are those of the host{slower}")


def _preprocessing(golden: Golden, name: str, manifest: Manifest) -> Check:
    contract, expected = manifest.preprocessing, golden.preprocessing
    if contract != expected:
        changed = [key for key, value in expected.to_json().items() if contract.to_json()[key] != value]
        found = "; ".join(f"{key} {contract.to_json()[key]}, expected {expected.to_json()[key]}" for key in changed)
        return Check("preprocessing", name, "fail", found, "the manifest was edited, or is of another build")
    given = golden.encoder_input()
    made = contract.batch([golden.pixels(image) for image in golden.images])
    error = float(np.abs(made.astype(np.float64) - given).max())
    numbers = {"max_abs_error": error}
    if not error <= (0 if contract.dtype == "uint8" else _MAX_INPUT_ERROR):  # NaN is no less
        found = f"differs from the golden input by up to {error:.3g}"
        return Check("preprocessing", name, "fail", found, "resize or normalization of this numpy build", numbers)
    return Check("preprocessing", name, "pass", f"differs from the golden input by at most {error:.2g}", None, numbers)


def _inference(
    golden: Golden,
    name: str,
    folder: Path,
    manifest: Manifest,
    kind: str,
    threads: int | None,
) -> Check:
    distribution = DISTRIBUTIONS[manifest.runtime]
    version = installed_version(distribution)
    if version is None:
        return Check("inference", name, "skip", f"{distribution} is not installed here")
    if is_older(version, manifest.minimum_runtime):
        found = f"{distribution} {version} is older than {manifest.minimum_runtime}"
        return Check("inference", name, "fail", found, f"an old runtime: pip install -U {distribution}")
    try:
        outputs = load_encoder(folder, threads=threads)(golden.encoder_input())
    except VitedgeError as error:
        return Check("inference", name, "fail", str(error), "the runtime of this device does not load the model")
    except Exception as error:  # whatever a runtime raises, the other artifacts are to be judged too
        found = f"{type(error).__name__}: {error}"
        return Check("inference", name, "fail", found, "the runtime does not run the model here, or lacks memory")
    if broken := [key for key, values in outputs.items() if not np.isfinite(values).all()]:
        found = f"{', '.join(broken)}: NaN or infinity"
        return Check("inference", name, "fail", found, _cause("overflows in a lower precision"))
    may_saturate = kind == ANY and X86 not in manifest.exact_in_wrapper
    return _judged(golden, name, outputs, kind, may_saturate=may_saturate)


def _judged(golden: Golden, name: str, outputs: Mapping[str, NDArray[Any]], kind: str, *, may_saturate: bool) -> Check:
    """Every output is judged; the check tells of `last_hidden_state`, and of what fails."""
    expected, host = golden.expected(), golden.expected(name)
    bounds = golden.tolerances[name].get(kind)
    found, there = (
        {key: fidelity(wanted, values[key]) for key, wanted in expected.items()} for values in (outputs, host)
    )
    numbers: dict[str, float] = {}
    for key in expected:
        prefix = "" if key == _FIRST else f"{key}_"
        numbers |= {prefix + what: value for what, value in found[key]._asdict().items()}
        numbers |= {f"{prefix}host_{what}": value for what, value in there[key]._asdict().items()}
        if bounds is not None:
            numbers |= {prefix + what: value for what, value in asdict(bounds[key]).items()}
    if bounds is None:
        words = f"{_near(found[_FIRST])}; no bound holds for {kind}, {_on_the_host(there[_FIRST])}"
        return Check("inference", name, "skip", words, None, numbers)
    far = [key for key, one in found.items() if not _within(one, bounds[key])]
    words = "; ".join(
        f"{'' if key == _FIRST else f'{key}: '}{_near(found[key])}; at least {bounds[key].min_sqnr_db:.1f} and"
        f" {bounds[key].min_cosine:.4f} asked, {_on_the_host(there[key])}"
        for key in far or [_FIRST]
    )
    if not far:
        return Check("inference", name, "pass", words, None, numbers)
    cause = _cause("computes otherwise than on the host")
    if may_saturate:
        cause = f"saturation, if this is an x86 CPU without VNNI: build with --target avx2; or {cause}"
    return Check("inference", name, "fail", words, cause, numbers)


def _within(found: Fidelity, bound: Tolerance) -> bool:
    return found.cosine_worst >= bound.min_cosine and found.sqnr_db >= bound.min_sqnr_db


def _near(found: Fidelity) -> str:
    return f"{found.sqnr_db:.1f} dB and a worst cosine of {found.cosine_worst:.4f} to FP32"


def _on_the_host(found: Fidelity) -> str:
    return f"{found.sqnr_db:.1f} and {found.cosine_worst:.4f} on the host"


def _cause(what: str) -> str:
    return f"the runtime {what}: a delegate, or float16 or bfloat16 in place of float32; switch them off and test again"


def fidelity(expected: NDArray[Any], found: NDArray[Any]) -> Fidelity:
    """Of two float32 [images, tokens, hidden] or [images, values]."""
    one, other = (_vectors(values).astype(np.float64) for values in (expected, found))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(1) / np.maximum(norms, 1e-30)
    noise = float(np.square(found.astype(np.float64) - expected).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    return Fidelity(float(cosines.min()), float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def _vectors(values: NDArray[Any]) -> NDArray[Any]:
    """One per image: the class token, where there are tokens."""
    return values[:, 0] if values.ndim == 3 else values


def lines(checks: Collection[Check]) -> Iterator[str]:
    """The checks as text."""
    for check in checks:
        name = check.step if check.artifact is None else f"{check.step} {check.artifact}"
        yield f"{check.status.upper():4}  {name:23} {check.found}"
        if check.cause:
            yield f"      {'':23} likely cause: {check.cause}"
