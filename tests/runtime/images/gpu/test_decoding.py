"""Decoding on a GPU behind the sources, with stand-ins for nvImageCodec and PyNvVideoCodec, and with nvImageCodec's own
decoder for the CPU where it is installed."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from deploykit.errors import BackendError, DeviceError, ImageError, MissingDependencyError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images import reading
from deploykit.runtime.images.gpu import jpeg, video
from deploykit.runtime.images.gpu.choice import DECODE
from deploykit.runtime.images.reading import decode_image, decoding_gpu
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.video import Video


def smooth_noise(height: int = 41, width: int = 63) -> Array:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def as_jpeg(image: Array, *flags: int, orientation: int = 1) -> bytes:
    data = cv2.imencode(".jpg", image, list(flags))[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


HALF_COLOURS = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that is to decode."""
    monkeypatch.setattr(reading, "gpu_unavailable_reason", lambda: None)
    monkeypatch.setattr(jpeg, "_own", SimpleNamespace())
    monkeypatch.setenv(DECODE, "gpu")


class Codec(ModuleType):
    """What is used of nvImageCodec, by OpenCV; ``made`` are the arguments of its decoders, ``declines`` and ``fails``
    what a test sets."""

    def __init__(self) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.made: list[dict[str, Any]] = []
        self.params: list[dict[str, Any]] = []
        self.decoded = 0
        self.declines, self.fails = False, ""
        self.BackendKind = SimpleNamespace(GPU_ONLY="gpu", HW_GPU_ONLY="engine", HYBRID_CPU_GPU="both", CPU_ONLY="cpu")
        self.ColorSpec = SimpleNamespace(SRGB="sRGB")
        self.SampleFormat = SimpleNamespace(I_BGR="BGR")

    def Backend(self, kind: str) -> str:  # noqa: N802  (that library's names)
        return kind

    def DecodeParams(self, **given: Any) -> dict[str, Any]:  # noqa: N802
        self.params.append(given)
        return given

    def Decoder(self, **given: Any) -> Codec:  # noqa: N802
        if self.fails == "start":
            raise RuntimeError("CUDA Runtime failure: '#35'")
        self.made.append(given)
        return self

    def decode(self, data: bytes, params: Any) -> Any:
        assert any(params is each for each in self.params)
        if self.fails == "decode":
            raise RuntimeError("out of memory")
        if self.declines:
            return None
        self.decoded += 1
        flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if not params["apply_exif_orientation"] else 0)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return SimpleNamespace(cpu=lambda: image)


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch, with_gpu: None) -> Codec:
    made, parent = Codec(), ModuleType("nvidia")
    parent.__path__ = []
    monkeypatch.setitem(sys.modules, "nvidia", parent)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", made)
    return made


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, with_gpu: None) -> Any:
    """nvImageCodec itself, with its decoder for the CPU in place of those for GPUs."""
    if find_spec("nvidia") is None or find_spec("nvidia.nvimgcodec") is None:
        pytest.skip("nvidia-nvimgcodec-cu13 is not installed")
    monkeypatch.setattr(
        jpeg,
        "decoder_arguments",
        lambda codec, gpu: {
            "device_id": codec.NVIMGCODEC_DEVICE_CPU_ONLY, "backends": [codec.Backend(codec.BackendKind.CPU_ONLY)]
        },
    )  # fmt: skip
    return None


def test_the_choice_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "gpu_unavailable_reason", lambda: None)
    for text, expected in (("", None), ("cpu", None), ("gpu", 0), ("gpu:0", 0), ("gpu:3", 3)):
        monkeypatch.setenv(DECODE, text)
        assert decoding_gpu() == expected
    for text in ("cuda", "gpu:", "gpu:-1", "gpu:x", "GPU", "gpu:\u0661", "gpu:" + "9" * 5000):
        monkeypatch.setenv(DECODE, text)
        with pytest.raises(UsageError, match="DEPLOYKIT_DECODE must be cpu, gpu or gpu:N"):
            decoding_gpu()


def test_a_gpu_that_is_not_there_is_an_error_and_not_every_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "gpu_unavailable_reason", lambda: "this machine has no NVIDIA driver")
    monkeypatch.setenv(DECODE, "gpu")
    skipped: list[Exception] = []
    with pytest.raises(DeviceError, match="DEPLOYKIT_DECODE asks for an NVIDIA GPU, but this machine has no"):
        list(Images((as_jpeg(smooth_noise()),)).frames(skipped.append))
    assert not skipped


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("turn", [True, False])
def test_exif_orientation_means_what_it_means_on_the_cpu(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, orientation: int, turn: bool
) -> None:
    data = as_jpeg(smooth_noise(), orientation=orientation)
    found = decode_image(data, turn=turn)
    monkeypatch.delenv(DECODE)
    np.testing.assert_array_equal(found, decode_image(data, turn=turn))
    assert codec.decoded == 1
    assert codec.params == [{"apply_exif_orientation": False, "color_spec": "sRGB", "sample_format": "BGR"}]


def test_the_decoder_is_made_once_for_each_gpu_and_interpolates_colours(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in ("gpu", "gpu", "gpu:2", "gpu"):
        monkeypatch.setenv(DECODE, asked)
        decode_image(as_jpeg(smooth_noise()))
    options = {"backends": ["engine", "gpu", "both"], "options": ":fancy_upsampling=1"}
    assert codec.made == [{"device_id": 0, **options}, {"device_id": 2, **options}]
    assert codec.decoded == 4


def test_what_the_gpu_declines_is_decoded_by_opencv_and_said(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    codec.declines, data = True, as_jpeg(smooth_noise())
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode_image(data, "beach.jpg"), expected)
    assert "beach.jpg is decoded on the CPU: the GPU's decoder does not take it" in caplog.text


def test_other_formats_and_other_channels_stay_opencvs(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    decode_image(cv2.imencode(".png", smooth_noise())[1].tobytes())
    decode_image(as_jpeg(smooth_noise()), channels=None)
    assert codec.decoded == 0
    assert not caplog.text


def test_damage_is_found_before_and_after(codec: Codec) -> None:
    data = as_jpeg(smooth_noise(400, 400))
    with pytest.raises(ImageError, match="damaged"):
        decode_image(data[: len(data) // 2])
    assert codec.decoded == 0


@pytest.mark.parametrize(
    ("fails", "words"), [("start", "does not start on cuda:0: CUDA"), ("decode", "failed on cuda")]
)
def test_a_decoder_that_fails_is_an_error(codec: Codec, fails: str, words: str) -> None:
    codec.fails = fails
    with pytest.raises(BackendError, match=f"nvImageCodec {words}"):
        decode_image(as_jpeg(smooth_noise()))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, with_gpu: None) -> None:
    for module in ("nvidia", "nvidia.nvimgcodec", "PyNvVideoCodec"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit-vision\[gpu-decode\]'"):
        decode_image(as_jpeg(smooth_noise()))
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit-vision\[gpu-decode\]'"):
        video._codec()


@pytest.mark.parametrize("flags", [(), HALF_COLOURS, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize("grey", [False, True])
def test_nvimagecodecs_own_decoder_gives_opencvs_bits(
    real: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flags: tuple[int, ...], grey: bool
) -> None:
    """By its interface as installed; on a GPU the numbers may lie a little apart."""
    image = smooth_noise()
    data = as_jpeg(image[..., 0] if grey else image, *flags, orientation=6)
    found = decode_image(data)
    assert "on the CPU" not in caplog.text
    monkeypatch.delenv(DECODE)
    np.testing.assert_array_equal(found, decode_image(data))


class VideoCodec(ModuleType):
    """What is used of PyNvVideoCodec, by OpenCV: frames as stored, RGB, in memory that the next one overwrites."""

    OutputColorType = SimpleNamespace(RGB="RGB")
    refuses: ClassVar[str] = ""
    broken: ClassVar[tuple[int, ...]] = ()
    extra: ClassVar[int] = 0
    opened: ClassVar[list[Any]] = []

    class ThreadedDecoder:
        """Linear access."""

        def __init__(self, path: str, ahead: int, **given: Any) -> None:
            if VideoCodec.refuses:
                raise RuntimeError(VideoCodec.refuses)
            self.given, self.ended, self._number = given, 0, -1
            self._capture = cv2.VideoCapture(path)
            self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
            more, first = self._capture.read()
            assert more
            self._memory = np.empty(first.size, np.uint8)
            self._shape = first.shape
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            VideoCodec.opened.append(self)

        def get_stream_metadata(self) -> Any:
            return SimpleNamespace(height=self._shape[0], width=self._shape[1])

        def get_batch_frames(self, count: int) -> list[Any]:
            assert count == 1
            self._number += 1
            more, image = self._capture.read()
            if self._number in VideoCodec.broken:
                raise RuntimeError("a packet is damaged")
            if not more:
                return []
            self._memory[:] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).reshape(-1)
            size, address = self._memory.size + VideoCodec.extra, self._memory.ctypes.data
            return [SimpleNamespace(framesize=lambda: size, GetPtrToPlane=lambda plane: address)]

        def end(self) -> None:
            self.ended += 1
            self._capture.release()


@pytest.fixture
def videos(monkeypatch: pytest.MonkeyPatch, with_gpu: None) -> Iterator[list[Any]]:
    """The decoders that were opened; each has to be ended once."""
    opened: list[Any] = []
    monkeypatch.setattr(VideoCodec, "opened", opened)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", VideoCodec("PyNvVideoCodec"))
    yield opened
    assert [decoder.ended for decoder in opened] == [1] * len(opened)


def write_video(path: Path, *, degrees: int = 0, frames: int = 6) -> Path:
    """Frames of 64 x 48 of a colour each; ``degrees``: the rotation that the file declares."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for number in range(frames):
        image = np.full((48, 64, 3), (40 * number, 20, 255 - 40 * number), np.uint8)
        image[:24, :32] = 255
        writer.write(image)
    writer.release()
    data = bytearray(path.read_bytes())
    matrix = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value << 16 for value in matrix)
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright_bgr_as_opencv_gives_them(
    videos: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degrees: int
) -> None:
    path = write_video(tmp_path / "a.mp4", degrees=degrees)
    monkeypatch.setenv(DECODE, "gpu:1")
    source = Video(path)
    found = list(source.frames())
    assert videos[0].given == {"gpu_id": 1, "use_device_memory": False, "output_color_type": "RGB"}
    monkeypatch.delenv(DECODE)
    usual = Video(path)
    assert (source.total, source.fps) == (usual.total, usual.fps) == (6, 25)
    expected = list(usual.frames())
    assert [frame.number for frame in found] == [frame.number for frame in expected] == list(range(6))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert found[0].image.shape == ((64, 48, 3) if degrees in (90, 270) else (48, 64, 3))


def test_a_frame_that_fails_is_passed_over_and_reported(
    videos: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoCodec, "broken", (2,))
    said: list[Exception] = []
    assert len(list(Video(write_video(tmp_path / "a.mp4")).frames(said.append))) == 5
    assert "declares 6 frames, of which 5 could be decoded" in str(said[0])


def test_a_codec_that_the_gpu_does_not_have_is_decoded_by_opencv_and_said(
    videos: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(VideoCodec, "refuses", "Codec not supported\non this GPU")
    path = write_video(tmp_path / "a.mp4")
    assert len(list(Video(path).frames())) == 6
    said = "PyNvVideoCodec does not decode it on cuda:0: Codec not supported on this GPU"
    assert f"{path} is decoded on the CPU: {said}" in caplog.text


def test_frames_of_another_size_are_an_error(
    videos: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoCodec, "extra", 64)
    with pytest.raises(BackendError, match=r"frames of 9,280 bytes, expected 64 x 48 x 3"):
        list(Video(write_video(tmp_path / "a.mp4")).frames())


def test_what_is_no_video_is_refused_as_ever(videos: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(ImageError, match="is not a video that OpenCV can read"):
        Video(path)
    assert not videos
