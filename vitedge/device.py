"""The command of a bundle, on the device: needs Python, numpy and one runtime.

    python -m vitedge.device selftest
    python -m vitedge.device run photo.jpg
    python -m vitedge.device bench --threads 1

Exit codes: 0 fine, 1 a test failed, 2 the input was wrong.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a device may have any, and what is imported next needs 3.11
    sys.exit("vitedge needs Python 3.11 or newer, this is " + sys.version.split()[0])

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitedge.benchmarks.machine import describe_machine
from vitedge.benchmarks.measure import measure_all
from vitedge.runtimes.bundle import Bundle, load_bundle
from vitedge.runtimes.encoder import DISTRIBUTIONS, installed_version
from vitedge.runtimes.errors import ArtifactError, RuntimeMissingError, VitedgeError
from vitedge.runtimes.fields import printable
from vitedge.runtimes.golden import GOLDEN_FOLDER, read_golden
from vitedge.runtimes.load import identities, load_encoder
from vitedge.runtimes.manifest import Manifest, load_manifest
from vitedge.runtimes.selftest import Check, judge_files, lines, passed, selftest

Artifacts = Mapping[str, tuple[Path, Manifest]]
_HERE = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Runs the command."""
    options = _parser().parse_args(argv)
    try:
        bundle = load_bundle(options.bundle)
        return int(options.command(bundle, options))
    except VitedgeError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return error.exit_code
    except OSError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return 2


def _selftest(bundle: Bundle, options: argparse.Namespace) -> int:
    machine = describe_machine()
    checks: tuple[Check, ...] = (judge_files(bundle.damages()),)
    artifacts: Artifacts = {}
    if checks[0].status == "pass":
        artifacts = _artifacts(bundle, options.artifact)
        golden = read_golden(bundle.folder / GOLDEN_FOLDER)
        checks += selftest(golden, artifacts, kind=machine.kind, threads=options.threads)
    if options.json:
        document = {
            "format": "vitedge-selftest/1",
            "passed": passed(checks),
            "machine": machine.to_json(),
            "source_digest": _source_digest(artifacts),
            "artifacts": identities(_manifests(artifacts)),
            "checks": [check.to_json() for check in checks],
        }
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        sys.stdout.writelines(printable(line) + "\n" for line in lines(checks))
        if not passed(checks) and all(check.status != "fail" for check in checks):
            sys.stdout.write("no runtime is installed here: pip install -r requirements.txt\n")
    return 0 if passed(checks) else 1


def _run(bundle: Bundle, options: argparse.Namespace) -> int:
    folder, manifest = next(iter(_installed(_artifacts(bundle, options.artifact)).values()))
    outputs = load_encoder(folder, threads=options.threads).encode(options.images)
    for index, image in enumerate(options.images):
        if "logits" in outputs and manifest.labels:
            logits = outputs["logits"][index]
            shares = np.exp(logits - logits.max())
            best = int(logits.argmax())
            said = f"{manifest.labels[best]} {shares[best] / shares.sum():.1%}"
        else:
            feature = outputs["last_hidden_state"][index, 0]
            said = f"norm {np.linalg.norm(feature):.3f}, begins {' '.join(f'{value:.3f}' for value in feature[:4])}"
        sys.stdout.write(printable(f"{image}  {said}\n"))
    return 0


def _bench(bundle: Bundle, options: argparse.Namespace) -> int:
    # Measuring processes find this package where it lies, which is in no site-packages.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))
    installed = _installed(_artifacts(bundle, options.artifact))
    twins = {name: bundle.folder / path for name, path in bundle.twins.items()}
    report = measure_all(
        {name: (folder, twins.get(name)) for name, (folder, _) in installed.items()},
        threads=1 if options.threads is None else options.threads,
        seconds=options.seconds,
    )
    if options.json:
        document = {
            "format": "vitedge-benches/2",
            "source_digest": _source_digest(installed),
            "artifacts": identities(_manifests(installed)),
            "runs": [report.to_json()],
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    for name, pair in report.pairs.items():
        for label, result in (("INT8", pair.artifact), ("FP32", pair.fp32)):
            if result is not None:
                median_ms, p90_ms = result.latency_median_ms, result.latency_p90_ms
                sys.stdout.write(f"{name:9} {label}  median {median_ms:.2f} ms  p90 {p90_ms:.2f} ms\n")
        sys.stdout.write(f"{name:9} {pair.verdict}\n")
        sys.stdout.writelines(f"{name:9} doubt: {flag}\n" for flag in pair.flags)
    sys.stdout.writelines(f"doubt: {flag}\n" for flag in report.flags)
    return 0


def _artifacts(bundle: Bundle, wanted: Sequence[str]) -> Artifacts:
    if others := [name for name in wanted if name not in bundle.artifacts]:
        raise ArtifactError(f"--artifact: expected one of {', '.join(bundle.artifacts)}, found {others[0]}")
    folders = {name: bundle.folder / path for name, path in bundle.artifacts.items() if not wanted or name in wanted}
    return {name: (folder, load_manifest(folder)) for name, folder in folders.items()}


def _installed(artifacts: Artifacts) -> Artifacts:
    found = {
        name: entry
        for name, entry in artifacts.items()
        if installed_version(DISTRIBUTIONS[entry[1].runtime]) is not None
    }
    if not found:
        wanted = ", ".join(DISTRIBUTIONS[manifest.runtime] for _, manifest in artifacts.values())
        raise RuntimeMissingError(f"none of {wanted} is installed here; install one with pip")
    return found


def _manifests(artifacts: Artifacts) -> Mapping[str, Manifest]:
    return {name: manifest for name, (_, manifest) in artifacts.items()}


def _source_digest(artifacts: Artifacts) -> str | None:
    """Of the checkpoint; a bundle is of one. None if nothing could be read."""
    return next((manifest.source.digest for _, manifest in artifacts.values()), None)


def _threads(word: str) -> int:
    if (threads := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {word}")
    return threads


def _seconds(word: str) -> float:
    if not math.isfinite(seconds := float(word)) or seconds <= 0:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, found {word}")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vitedge.device", description="Tests and measures a bundle here.")
    commands = parser.add_subparsers(required=True, metavar="selftest|run|bench")
    for name, command, words in (
        ("selftest", _selftest, "does everything do here what it did on the host?"),
        ("run", _run, "classes, or features, of images"),
        ("bench", _bench, "latency, and the speed-up over FP32 if the bundle holds it"),
    ):
        sub = commands.add_parser(name, help=words, description=words)
        sub.set_defaults(command=command)
        sub.add_argument("--bundle", type=Path, default=_HERE, help="default: this one")
        all_of_them = (
            "one of the bundle's; may be repeated; default: all, of which run takes the first that is installed"
        )
        sub.add_argument("--artifact", action="append", default=[], help=all_of_them)
        sub.add_argument("--threads", type=_threads, help="of the runtime")
        if name == "run":
            sub.add_argument("images", nargs="+", type=Path)
        else:
            sub.add_argument("--json", action="store_true", help="one JSON document")
        if name == "bench":
            sub.add_argument("--seconds", type=_seconds, default=8.0, help="for each artifact")
    return parser


if __name__ == "__main__":
    sys.exit(main())
