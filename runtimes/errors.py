"""The one error tree.

A message says what is wrong, in which file or tensor, what was expected, what was found and what to do next.
The command line turns `exit_code` into the process's exit code: 1 a gate failed, 2 the input was wrong.
"""


class VitedgeError(Exception):
    """Base of every error that vitedge raises on purpose."""

    exit_code = 2


class ImageError(VitedgeError):
    """An image cannot be read: missing, truncated, of an unsupported format, or too large to decode."""


class ImageSetError(VitedgeError):
    """A folder of images cannot be used: missing, empty, too many unreadable files, or shared with another."""


class ArtifactError(VitedgeError):
    """An artifact folder is not what its manifest says, or its manifest is not one."""


class RuntimeMissingError(VitedgeError):
    """The runtime that an artifact needs is not installed, or too old."""


class InputShapeError(VitedgeError):
    """An array handed to an encoder has the wrong shape or data type, or holds NaN."""


class CheckpointError(VitedgeError):
    """A checkpoint cannot be loaded: not found, another architecture, unsafe format, missing or misshapen weights."""


class PlanError(VitedgeError):
    """A quantization plan is inconsistent with itself or with the encoder it is applied to."""


class ConversionError(VitedgeError):
    """A converted model does not compute what PyTorch computes, or cannot be written."""


class OutputError(VitedgeError):
    """The output folder is not ours to replace, or cannot be written."""


class AccuracyError(VitedgeError):
    """An accuracy measurement is impossible: NaN, a missing output, zero images."""


class GateFailedError(VitedgeError):
    """An artifact lost more accuracy than the gates allow."""

    exit_code = 1
