"""The measuring process for PyTorch: an artifact's checkpoint in FP32, as transformers runs it, eager, not compiled.

    python -m vitedge.benchmarks.torch_worker ARTIFACT [--model CHECKPOINT] --threads 1 --batch 1

It speaks as `worker.py` does, and is given normalized pixels whatever the artifact takes. Loading includes the hash of
the checkpoint, as an artifact's includes that of its files.
"""

import argparse
import importlib
from pathlib import Path

from vitedge.benchmarks.worker import Encode, arguments, serve
from vitedge.runtimes.errors import RuntimeMissingError
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.preprocess import Preprocessing


def main() -> None:
    """Serves the checkpoint of the artifact named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitedge.benchmarks.torch_worker", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model")
    options = arguments(parser)

    def load() -> tuple[Encode, Preprocessing]:
        import torch  # noqa: PLC0415 - imported in `_import_torch`, after the process is pinned

        from vitedge.converters.source import source_checkpoint  # noqa: PLC0415

        torch.set_num_threads(options.threads)
        checkpoint = source_checkpoint(load_manifest(options.artifact), options.model, normalized=True)
        return checkpoint.reference(), checkpoint.preprocessing

    serve(load, batch=options.batch, cpus=options.cpus, prepare=_import_torch)


def _import_torch() -> None:
    try:
        importlib.import_module("vitedge.converters.source")
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            f"{error.name} is not installed; to measure PyTorch: pip install 'vitedge[convert]'"
        ) from error


if __name__ == "__main__":
    main()
