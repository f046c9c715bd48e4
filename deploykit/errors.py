"""Every error that deploykit raises on purpose, with the exit code of the command line.

::

    DeployError                     1
      + UsageError                  2   options that do not go together
      + MissingDependencyError      3   an extra is not installed
      + NotFoundError               4   a file, a folder or a name that does not exist
      + CheckpointError            10   not a checkpoint, or a damaged one
      |   + UnsafeCheckpointError  11   a checkpoint that breaks the reader's limits
      |   + UnknownLayerError      12   a layer name that deploykit does not have
      |   + WeightsMismatchError   13   weights that do not fit the model
      + ImageError                 20   an image or a video that cannot be read
      + ImageSizeError             21   a network input size that the model cannot take
      + OutputError                30   a result that cannot be written
      |   + NoPermissionError      31   ... because the path is not writable
      |   + DiskFullError          32   ... because the disk is full
      + ExportError                40   a graph that could not be made
      |   + FoldError              41   a fold that changed the numbers
      |   + ParityError            42   an artefact that does not agree with its source
      |   + AccuracyError          43   ... or that loses more accuracy than is allowed
      + ArtefactError              50   an artefact that cannot be read
      |   + SpecError              51   ... or whose spec is missing or wrong
      + BackendError               60   an inference backend that cannot load or run a model
      |   + DeviceError            61   ... because this machine lacks the GPU or the driver that is needed
      |   + NotFiniteError         62   ... because what the model gives is NaN or infinite
      + FetchError                 70   a download that failed or is not what was expected
      + DataError                  80   annotations that cannot be read, or do not match the model or the images
      + SlowerError                85   a benchmark that is slower than its baseline
      + UnexpectedError            90   any other exception: a fault in deploykit or in a library
          + OutOfMemoryError       91   ... because the memory does not suffice

Three codes are those of a shell: 130 after Ctrl-C, 143 after SIGTERM, which cleans up as Ctrl-C does, and 141 if the
reader closed the pipe.

Each message says what was expected, what was found and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

__all__ = [
    "DISTRIBUTION",
    "AccuracyError",
    "ArtefactError",
    "BackendError",
    "CheckpointError",
    "DataError",
    "DeployError",
    "DeviceError",
    "DiskFullError",
    "ExportError",
    "FetchError",
    "FoldError",
    "ImageError",
    "ImageSizeError",
    "MissingDependencyError",
    "NoPermissionError",
    "NotFiniteError",
    "NotFoundError",
    "OutOfMemoryError",
    "OutputError",
    "ParityError",
    "SlowerError",
    "SpecError",
    "UnexpectedError",
    "UnknownLayerError",
    "UnsafeCheckpointError",
    "UsageError",
    "WeightsMismatchError",
    "import_errors_explained",
    "import_extra",
    "installing",
    "os_errors_as_output_errors",
]


class DeployError(Exception):
    """Base of every error in this file; ``exit_code`` is the exit code of the command line."""

    exit_code = 1


class UsageError(DeployError):
    """Options or arguments that contradict each other or have invalid values."""

    exit_code = 2


class MissingDependencyError(DeployError):
    """A package that an extra installs is missing, or cannot be loaded on this machine."""

    exit_code = 3


class NotFoundError(DeployError):
    """A file, a folder, a model name or a device that does not exist."""

    exit_code = 4


class CheckpointError(DeployError):
    """A file that is not a checkpoint, or a damaged one."""

    exit_code = 10


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that breaks the limits of the safe reader, or refers to something that it refuses."""

    exit_code = 11


class UnknownLayerError(CheckpointError):
    """A checkpoint's own description names a layer that deploykit does not have."""

    exit_code = 12


class WeightsMismatchError(CheckpointError):
    """The weights do not fit the model that they are meant for."""

    exit_code = 13


class ImageError(DeployError):
    """An image or a video that is unreadable or empty."""

    exit_code = 20


class ImageSizeError(DeployError):
    """A network input size that the model cannot take."""

    exit_code = 21


class OutputError(DeployError):
    """A result could not be written."""

    exit_code = 30


class NoPermissionError(OutputError):
    """A result could not be written because the path is not writable."""

    exit_code = 31


class DiskFullError(OutputError):
    """A result could not be written because the disk, or a quota, is full."""

    exit_code = 32


class ExportError(DeployError):
    """A graph could not be made from a model."""

    exit_code = 40


class FoldError(ExportError):
    """Folding (RepConv, batch norm, implicits) changed what a model computes."""

    exit_code = 41


class ParityError(ExportError):
    """The outputs of an artefact differ from those of the model it was made from."""

    exit_code = 42


class AccuracyError(ExportError):
    """An export loses more accuracy against its source than is allowed."""

    exit_code = 43


class ArtefactError(DeployError):
    """An exported model cannot be read."""

    exit_code = 50


class SpecError(ArtefactError):
    """The spec of an exported model is missing, damaged or of a newer format version."""

    exit_code = 51


class BackendError(DeployError):
    """An inference backend could not load or run a model."""

    exit_code = 60


class DeviceError(BackendError):
    """The GPU or the driver that is needed is missing, too old or of another kind."""

    exit_code = 61


class NotFiniteError(BackendError):
    """A network gave NaN or infinity, from which no result follows."""

    exit_code = 62


class FetchError(DeployError):
    """A download failed, or its content is not what was expected."""

    exit_code = 70


class DataError(DeployError):
    """A data set whose annotations cannot be read, or do not match the model or the images."""

    exit_code = 80


class SlowerError(DeployError):
    """A benchmark that is slower than its baseline, by more than the tolerance and by more than noise."""

    exit_code = 85


class UnexpectedError(DeployError):
    """The command line's error for an exception that is not of this tree; the library does not wrap such a one."""

    exit_code = 90


class OutOfMemoryError(UnexpectedError):
    """The command line's error for a MemoryError, or for what a library says instead of one. The library itself raises
    it where a network needs more memory than the limit that was set."""

    exit_code = 91


_EXTRAS = {
    "google": "serve",
    "grpc": "serve",
    "hotcoco": "eval",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "onnxsim": "export",
    "prometheus_client": "serve",
    "pyarrow": "cluster",
    "pycocotools": "dev",
    "model_signing": "signing",
    "python_multipart": "serve",
    "ray": "cluster",
    "starlette": "serve",
    "torch": "export",
    "uvicorn": "serve",
}
"""Module -> the extra that installs it."""

_BASE = {"cv2": "opencv-python (or opencv-python-headless)", "numpy": "numpy", "rich": "rich", "yaml": "pyyaml"}
"""Module -> the package that deploykit itself requires; it may still be missing."""


DISTRIBUTION = "deploykit-vision"
"""The name that pip installs deploykit by; on the package index ``deploykit`` is another project."""


def installing(extra: str) -> str:
    """Return the command that installs deploykit with one of its extras."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a heavy dependency where it is used.

    Raises:
        MissingDependencyError: the module, or a library that it needs, is missing; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise _missing(module, installing(extra), e) from e


def _missing(module: str, command: str, error: ImportError) -> MissingDependencyError:
    absent = isinstance(error, ModuleNotFoundError) and error.name == module.split(".", maxsplit=1)[0]
    reason = "is not installed" if absent else f"cannot be loaded ({error})"
    return MissingDependencyError(f"{module} is required here but {reason}: {command}")


@contextlib.contextmanager
def import_errors_explained() -> Iterator[None]:
    """Turn the ImportError of a dependency into a MissingDependencyError that says what to install.

    Raises:
        MissingDependencyError: an import inside the block failed for a reason that an installation fixes.
    """
    try:
        yield
    except ImportError as e:
        name = (e.name or "").split(".")[0]
        if any(library in str(e) for library in ("libGL", "libgthread", "libglib")):
            raise MissingDependencyError(
                f"OpenCV cannot be loaded ({e}): opencv-python needs libGL and glib; install them, or replace it with "
                "opencv-python-headless, the same module without windows (pip uninstall opencv-python, then "
                "pip install opencv-python-headless)"
            ) from e
        if name in _BASE:
            raise _missing(name, f"pip install {_BASE[name]}", e) from e
        if name not in _EXTRAS:
            raise
        raise _missing(name, installing(_EXTRAS[name]), e) from e


@contextlib.contextmanager
def os_errors_as_output_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error while ``path`` is written into an OutputError.

    Raises:
        NoPermissionError, DiskFullError, OutputError: depending on the system's error code.
        BrokenPipeError: nobody reads a pipe any more, which ends a program without a message.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NoPermissionError(
                f"cannot write {path}: no permission ({e.strerror}); choose another path with --out"
            ) from e
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"cannot write {path}: {e.strerror}; free some space or choose another path with --out"
            ) from e
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from e
