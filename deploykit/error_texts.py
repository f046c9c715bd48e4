"""What each error of :mod:`deploykit.errors` comes from, and what to do: for ``deploykit help NN`` and its page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from deploykit.errors import DeployError
from deploykit.version import DOCS_URL

__all__ = ["SHELL_CODES", "TEXTS", "ErrorText", "explain", "page_address", "tree"]

SHELL_CODES = {
    0: "Success.",
    130: "Ctrl-C ended the command; unfinished files are removed.",
    141: "The program that read the output (head, less) closed the pipe.",
    143: "SIGTERM ended the command, as a container or a batch system sends it; unfinished files are removed.",
}
"""Exit codes that are no error of deploykit."""


@dataclass(frozen=True)
class ErrorText:
    """Causes and remedies, a sentence each without its full stop, and a message as it is printed."""

    causes: tuple[str, ...]
    remedies: tuple[str, ...]
    example: str


TEXTS: dict[int, ErrorText] = {
    1: ErrorText(
        ("No command ends with this code today: every error has a code of its own",),
        ("In Python, catch DeployError to handle every error of deploykit",),
        "",
    ),
    2: ErrorText(
        (
            "A word is not an option of this command, or its value is of the wrong kind",
            "Two options contradict each other, or an option does not fit the model's task",
        ),
        ("Read the message: it names the option and what it takes", "deploykit COMMAND --help lists the options"),
        "--crop is a share of the shorter side, over 0 and up to 1, got 2",
    ),
    3: ErrorText(
        (
            "An optional package is missing: torch and onnx for exports, ONNX Runtime for predictions, hotcoco for AP",
            "A package is installed, but a system library that it loads is not: libGL for opencv-python",
            "A compiler or CMake is missing for deploykit plugins build",
        ),
        (
            "Run the pip command of the message in the environment that runs deploykit",
            "deploykit doctor lists what is installed, and which extra brings what is not",
        ),
        "cmake is needed here and is not installed: pip install cmake, or a system package",
    ),
    4: ErrorText(
        ("A path is misspelled, or relative to another folder", "No model, release or device has this name"),
        (
            "Check the path; the message names files with similar names",
            "deploykit models lists what can be built, deploykit fetch --list what can be downloaded",
        ),
        "a checkpoint or an exported model was expected at yolov5m.pt, but there is no such file; did you mean "
        "yolov5n.pt?",
    ),
    10: ErrorText(
        (
            "A download broke off, or the file is a web page instead of weights (Git LFS pointer, login page)",
            "The network is of a family that deploykit does not have",
            "The file holds an optimizer, a tokenizer or another part of a training without a network",
        ),
        (
            "Download the file again and compare its size with the source's",
            "deploykit inspect FILE shows what the file contains",
            "Export the model to ONNX with its own project; deploykit runs ONNX files of others (docs/spec.md)",
        ),
        "yolov7-tiny.pt: it begins as a torch zip file and its end is missing: the file is truncated or damaged; "
        "get it again",
    ),
    11: ErrorText(
        (
            "The pickle names a function that runs programs, as a checkpoint with malicious code does",
            "Entries are compressed, or claim more memory than the file can hold",
        ),
        (
            "Do not load the file with torch.load(weights_only=False)",
            "Get the weights from their authors, as safetensors if there is one",
        ),
        "best.pt: it names os.system, a way to run code that no checkpoint needs: refused as unsafe; "
        "get the weights from a source that you trust",
    ),
    12: ErrorText(
        ("The model was trained with a fork that added layers", "The model is newer than this deploykit"),
        (
            "Export the model to ONNX with the project that trained it, and run that file",
            "Add the layer: CONTRIBUTING.md, 'Adding something else'",
        ),
        "layer 4 of the model's description is 'C2fCIB', which deploykit does not have; it has Conv, Bottleneck, C3",
    ),
    13: ErrorText(
        (
            "Layers were changed, added or removed after the description was written",
            "The batch norms were fused before saving",
            "The file is of another network with a similar layout",
        ),
        (
            "deploykit inspect FILE shows the family and the tensors",
            "Save the checkpoint before fusing or pruning",
        ),
        "fused.pt: its batch norms are fused into its convolutions: take a file of before they were fused",
    ),
    20: ErrorText(
        (
            "The file is damaged, empty, or in a format that OpenCV does not read",
            "The image has more pixels than allowed",
            "A video declares more frames than can be read",
        ),
        (
            "Open the file with an image viewer, and convert it to PNG or JPEG",
            "--max-pixels raises the limit for images that you trust",
        ),
        "the folder shots holds no image (.jpg, .png, .webp, ...), only 3 other files",
    ),
    21: ErrorText(
        ("The size of --img is no multiple of the network's stride", "The input would take more memory than there is"),
        ("Use the size that the message names", "Choose a smaller --img or --batch"),
        "950x950 (height x width) does not fit yolov7-w6-pose: both sides must be multiples of its stride 64; "
        "the next valid size is --img 960 960",
    ),
    30: ErrorText(
        (
            "A folder of the path does not exist, or the path is a folder",
            "A result does not fit the format: a JPEG has at most 65500 columns",
            "The output would replace an input",
        ),
        ("Choose another path with --out", "Save as PNG instead of JPEG"),
        "OpenCV cannot encode 9000 x 5000 pixels as mp4v video for out/film.mp4",
    ),
    31: ErrorText(
        ("The folder belongs to another user, or is mounted read-only",),
        ("Choose another path with --out", "In a container, mount a writable volume"),
        "cannot write /data/model.onnx: no permission (Permission denied); choose another path with --out",
    ),
    32: ErrorText(
        ("The disk or the quota is full", "The file system limits the size of a file"),
        ("Free some space, or choose another disk with --out",),
        "cannot write model.onnx: No space left on device; free some space or choose another path with --out",
    ),
    40: ErrorText(
        (
            "torch's exporter does not know an operator of the model, or its version is untested",
            "The requested opset or precision has no form of an operator",
        ),
        (
            "Install the versions of constraints.txt, or try --exporter legacy",
            "Use the opset that the message names",
            "--traceback shows the exporter's own report",
        ),
        "opset 11 has no form of GridSample: use --opset 16",
    ),
    41: ErrorText(
        (
            "The weights are of another model with the same shapes",
            "The variance of a batch norm is almost 0, or the weights hold NaN",
        ),
        ("Check the checkpoint with deploykit inspect", "Train on, or repair, the layer that the message names"),
        "model.3.bn gives values that are not finite: its weights hold NaN or infinity, or overflow",
    ),
    42: ErrorText(
        (
            "The exporter, the simplifier or the backend changed the numbers",
            "Half precision costs this network more than its tolerance allows",
            "The two models of compare or verify have different weights or preprocessing",
        ),
        (
            "Read the worst output in the last line, and docs/parity.md for the tolerance",
            "Export in fp32 first; if that is verified, the precision is the cause",
            "Try --exporter legacy or --no-simplify, and report the model if only one of them passes",
        ),
        "model.onnx does not agree with its source and was not kept: boxes differ by 0.31 px on noise (seed 0)",
    ),
    43: ErrorText(
        ("The precision costs more AP (top-1, mIoU, PSNR) than --max-drop allows", "Too few calibration images"),
        (
            "Keep more layers in higher precision (--keep), or use fp16",
            "Calibrate with more and more typical images (--calib-size)",
        ),
        "AP falls from 35.03 to 33.10, by 1.93 points; 0.5 are allowed (--max-drop), so nothing was kept. "
        "Keep more layers in higher precision, calibrate with more images, or allow more",
    ),
    50: ErrorText(
        ("The file is truncated, or no ONNX file", "The engine's record was written by a newer deploykit"),
        ("Copy or export the file again", "Copy the files beside it too: .onnx.data, .trt.json, .parity.npz"),
        "model.onnx is not a whole ONNX file: Error parsing message",
    ),
    51: ErrorText(
        (
            "The file was not exported by deploykit and does not tell enough about its output",
            "A spec has an unknown field, or numbers that contradict each other",
            "The network gives what its spec does not allow: scores over 1, labels that no class has",
        ),
        (
            "deploykit inspect FILE --draft-spec drafts a spec; complete it and pass --spec FILE (docs/spec.md)",
            "Update deploykit if the format version is newer",
        ),
        "neither model carries a spec that describes its output, or tells enough without one: pass one (spec=, or "
        "--spec FILE); deploykit inspect FILE --draft-spec writes a draft",
    ),
    60: ErrorText(
        (
            "The backend lacks an operator of the file: an older ONNX Runtime, or a plugin library that is not built",
            "The network failed while it ran, or took longer than --time-limit",
        ),
        (
            "Update ONNX Runtime, or export with a lower --opset",
            "Build the libraries with deploykit plugins build, or export without --nms plugin",
        ),
        "model.onnx was stopped: one run took longer than the time limit of 10 s; raise it (--time-limit), or look "
        "for an endless loop in the network",
    ),
    61: ErrorText(
        (
            "There is no NVIDIA GPU, its driver is too old, or the container does not see it",
            "The engine was built for another GPU or another TensorRT",
        ),
        (
            "Run deploykit doctor and nvidia-smi in the same place; a Docker container needs docker run --gpus all",
            "Build the engine on the machine that runs it, or use the ONNX file",
        ),
        "cuda:1 was requested, but this machine has 1 GPU",
    ),
    62: ErrorText(
        ("The weights hold NaN", "A value overflows in fp16 or int8"),
        ("Run the checkpoint itself: deploykit predict FILE.pt", "Export in fp32 or bf16"),
        "the network must give finite numbers, but 12 of 8,400 values of its output 'scores' are NaN: its weights are "
        "damaged, or numbers overflow in its precision; export it again from a sound checkpoint, or in fp32",
    ),
    70: ErrorText(
        ("The network, a proxy or the server failed", "The file at this address has changed"),
        (
            "Run the same command again: a download resumes",
            "Download the file with a browser; deploykit export takes any path",
        ),
        "another process is downloading to yolov5n.pt: wait for it, or choose another --out",
    ),
    80: ErrorText(
        (
            "The annotations are not in the expected format, or name classes that the model does not have",
            "Images that the annotations list are missing",
            "The calibration images give numbers without a range",
        ),
        (
            "docs/evaluation.md shows the formats by task",
            "--images names the folder that the file names of the annotations are relative to",
        ),
        "expected annotations as JSON, but labels.json does not parse: line 1 column 1",
    ),
    85: ErrorText(
        (
            "The model, its options or a library became slower",
            "Another program kept the machine busy during one of the two measurements",
        ),
        (
            "Measure again on an idle machine, for longer (--duration)",
            "deploykit bench --compare runs both files in turn, so that what else the machine does meets both",
            "Keep a new baseline by deploykit bench --json --samples where the slower one is wanted",
        ),
        "slower than old.json: end to end takes 1.31 (1.27 to 1.36) times as long; 5 % are allowed (--tolerance). "
        "Measure again on an idle machine, or accept it with a new baseline",
    ),
    90: ErrorText(
        ("A fault in deploykit, or in a library that it uses",),
        (
            "Repeat the command with --traceback, and report what it prints with the output of deploykit doctor",
            "Install the versions of constraints.txt if a library is newer",
        ),
        "unexpected ValueError (predictor.py:120): a fault in deploykit or in a library that it uses; "
        "--traceback shows where",
    ),
    91: ErrorText(
        ("The images, the batch or the model are too large for the memory of this machine or container",),
        ("Use a smaller --batch or --img, or --tile for restoration", "Raise the container's memory limit"),
        "there is not enough memory for this model and this input: take smaller images or a smaller batch, or free "
        "some memory; --traceback shows where it ran out",
    ),
}
"""Exit code -> the text of the error that has it."""


def tree(error: type[DeployError] = DeployError) -> Iterator[type[DeployError]]:
    """Yield an error and all below it, each before those that are of its kind."""
    yield error
    for kind in error.__subclasses__():
        yield from tree(kind)


def page_address(code: int) -> str:
    """Return the address of the page of an exit code."""
    return f"{DOCS_URL}/en/latest/errors/{code}.html"


def explain(code: int) -> str | None:
    """Return what an exit code means: causes, remedies, an example and its page; None: there is no such code."""
    if code in SHELL_CODES:
        return f"exit code {code}: {SHELL_CODES[code]}"
    error = next((kind for kind in tree() if kind.exit_code == code), None)
    if error is None:
        return None
    text = TEXTS[code]
    parts = [f"exit code {code}: {error.__name__}", str(inspect.getdoc(error))]
    parts.append("\n".join(["causes:", *(f"  * {cause}" for cause in text.causes)]))
    parts.append("\n".join(["what to do:", *(f"  * {remedy}" for remedy in text.remedies)]))
    if text.example:
        parts.append(f"an example:\n  deploykit: {text.example} [deploykit help {code}]")
    return "\n\n".join([*parts, page_address(code)])
