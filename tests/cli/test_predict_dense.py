"""``deploykit predict`` for classes, label maps and restored images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import read_raw
from tests.dense_networks import blurrer, brightener, classifier, segmenter
from tests.runtime.predict.test_dense import BLUE, GREEN, halves, mosaic, plain


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), halves())
    cv2.imwrite(str(folder / "b.jpg"), plain(GREEN, (70, 50)))
    return folder


def test_classes_are_printed_and_written(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = classifier(tmp_path / "c.onnx")
    assert predict("--model", network, "--source", images, "--top", 2, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("a.png: red 0.498, blue 0.498") or out[0].endswith("a.png: blue 0.498, red 0.498")
    assert out[1].startswith(f"{images / 'b.jpg'}: green 1.000, ")
    assert out[2] == "2 images: classified"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "b.jpg"}


def test_label_maps_are_drawn_and_written(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="pillow (the extra eval) is not installed")
    network, out = segmenter(tmp_path / "s.onnx"), tmp_path / "out"
    assert predict("--model", network, "--source", images, "--maps", "--out", out, "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["shares"] == {"red": 0.5, "blue": 0.5}
    assert {p.name for p in out.iterdir()} == {"a.png", "a-labels.png", "b.jpg", "b-labels.png"}
    with pillow.open(out / "a-labels.png") as saved:
        assert set(np.unique(np.array(saved))) == {0, 2}


def test_label_maps_alone(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="pillow (the extra eval) is not installed")
    network, out = segmenter(tmp_path / "s.onnx"), tmp_path / "out"
    words = ("--model", network, "--source", images, "--maps", "--no-draw", "--resume", "--out", out)
    assert predict(*words) == 0
    maps = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert {p.name for p in maps} == {"a-labels.png", "b-labels.png"} == {p.name for p in out.iterdir() if p in maps}
    assert not list(out.glob("*.jpg"))
    next(iter(maps)).unlink()
    assert predict(*words) == 0  # the map that is gone is written again, the other one is left as it was
    again = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert again.keys() == maps.keys()
    assert sum(again[p] == maps[p] for p in maps) == 1


def test_label_maps_beside_their_images(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="pillow (the extra eval) is not installed")
    network = segmenter(tmp_path / "s.onnx")
    before = {p.name for p in images.iterdir()}
    assert predict("--model", network, "--source", images, "--maps", "--no-draw", "--out", images) == 0
    assert {p.name for p in images.iterdir()} - before == {"a-labels.png", "b-labels.png"}


@pytest.mark.parametrize("drawn", [True, False])
def test_a_video_has_a_label_map_per_frame(tmp_path: Path, drawn: bool) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="pillow (the extra eval) is not installed")
    network, film, out = segmenter(tmp_path / "s.onnx"), tmp_path / "film.mp4", tmp_path / "out"
    with Mp4Writer(film, 10) as writer:
        for _ in range(3):
            writer.write(halves())
    words = () if drawn else ("--no-draw",)
    assert predict("--model", network, "--source", film, "--maps", "--every", "2", "--out", out, *words) == 0
    assert sorted(p.name for p in out.iterdir()) == (["film", "film.mp4"] if drawn else ["film"])
    assert sorted(p.name for p in (out / "film").iterdir()) == ["000000-labels.png", "000002-labels.png"]
    with pillow.open(out / "film" / "000002-labels.png") as saved:
        assert set(np.unique(np.array(saved))) == {0, 2}


def test_restored_images_are_written_without_loss(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, out = brightener(tmp_path / "r.onnx"), tmp_path / "out"
    assert predict("--model", network, "--source", images, "--out", out) == 0
    said = capsys.readouterr().out
    assert "a.png: restored, 60x40, in 4 tiles" in said
    assert {p.name for p in out.iterdir()} == {"a.png", "b.png"}
    assert cv2.imread(str(out / "a.png"))[5, 50].tolist() == list(BLUE)
    assert predict("--model", network, "--source", images / "a.png", "--out", out / "more", "--save-as", "webp") == 0
    assert [p.name for p in (out / "more").iterdir()] == ["a.webp"]


@pytest.fixture
def mosaics(tmp_path: Path) -> Path:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("x.dng", "y.dng"):
        (folder / name).write_bytes(dng_bytes(mosaic()))
    return folder


def test_mosaics_become_mosaics(mosaics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, out = blurrer(tmp_path / "b.onnx", channels=4), tmp_path / "out"
    assert predict("--model", network, "--source", mosaics, "--out", out, "--overlap", 4) == 0
    said = capsys.readouterr().out
    assert "mosaic of 90x67 (GBRG, black 64, white 1023) restored, in 4 tiles" in said
    assert {p.name for p in out.iterdir()} == {"x.dng", "y.dng"}
    assert read_raw(out / "x.dng").letters == "GBRG"


def test_the_layout_of_the_contest(mosaics: Path, tmp_path: Path) -> None:
    network, out = blurrer(tmp_path / "b.onnx", channels=4), tmp_path / "result"
    assert predict("--model", network, "--source", mosaics, "--out", out, "--layout", "contest") == 0
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.*")} == {"data/denoise0.dng", "data/denoise1.dng"}


def test_mosaics_are_developed(mosaics: Path, tmp_path: Path) -> None:
    network, out = blurrer(tmp_path / "b.onnx", channels=4), tmp_path / "out"
    assert predict("--model", network, "--source", mosaics / "x.dng", "--out", out, "--save-as", "png") == 0
    assert cv2.imread(str(out / "x.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_raw_files_in_a_folder_are_for_networks_that_take_them(
    mosaics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = classifier(tmp_path / "c.onnx")
    assert predict("--model", network, "--source", mosaics) != 0
    assert "holds only RAW files, but this model takes developed images" in capsys.readouterr().err
    cv2.imwrite(str(mosaics / "z.png"), plain(GREEN))
    assert predict("--model", network, "--source", mosaics) == 0
    assert "1 image: classified" in capsys.readouterr().out
    assert predict("--model", network, "--source", mosaics / "z.png", mosaics / "x.dng") == 0  # named: developed
    out, err = capsys.readouterr()
    assert f"{mosaics / 'x.dng'}: " in out
    assert "2 images: classified" in out
    assert "passed over" not in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--coco", "x.json"), "--coco needs a model that finds objects; this model's task is classify"),
        (("--maps",), "--maps needs a model that segments, and --out"),
        (("--save-as", "png"), "--save-as needs a model that restores, and --out"),
        (("--layout", "contest"), "--layout contest needs a model that restores mosaics, and --out"),
        (("--conf", "0.5"), "conf: not for the task classify of this model"),
        (("--tile", "64"), "tile: not for the task classify of this model"),
    ],
)
def test_options_of_other_tasks(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert predict("--model", classifier(tmp_path / "c.onnx"), "--source", images, *options) == 2
    assert words in capsys.readouterr().err


def test_an_image_cannot_become_a_mosaic(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = brightener(tmp_path / "r.onnx")
    assert predict("--model", network, "--source", images, "--out", tmp_path / "o", "--save-as", "dng") == 2
    assert "--save-as dng is for mosaics" in capsys.readouterr().err
