"""What ``deploykit predict`` writes: never over a source or another result, and COCO files that can be scored."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.cli._predict_folder import concerns_one_file
from deploykit.errors import DataError, ImageError, OutputError, UsageError, os_errors_as_output_errors
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import RawImage
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model
from tests.dense_networks import blurrer, segmenter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def _write(path: Path, *blocks: tuple[int, int, tuple[int, int, int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, planted(*blocks, scale=4))[1].tobytes())
    return path


def _film(path: Path, *columns: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, 25) as recorder:
        for column in columns:
            recorder.write(planted((column, 2, RED), scale=4))
    return path


def _predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def _drawn(path: Path) -> bool:
    """Whether something is drawn: on the black images without a block, nothing is."""
    return bool(cv2.imread(str(path)).any())


def test_every_image_gets_a_file_of_its_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [
        _write(tmp_path / "x" / "a.png"),
        _write(tmp_path / "y" / "a.png", (0, 3, RED)),
        _write(tmp_path / "a-2.png"),
        _write(tmp_path / "a.ppm", (1, 1, RED)),
    ]
    out = tmp_path / "out"
    assert _predict("--model", model, "--source", *sources, "--out", out) == 0
    assert {p.name: _drawn(p) for p in out.iterdir()} == {
        "a.png": False, "a-2.png": False, "a-3.png": True, "a.jpg": True
    }  # fmt: skip
    assert f"another result has are numbered: {sources[1]} -> {out / 'a-3.png'}\n" in capsys.readouterr().err
    assert _predict("--model", model, "--source", *sources, "--out", out) == 0  # a second run replaces its own files
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize("name", ["images", "link", "images/../images"])
def test_a_source_is_never_replaced(model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    for number in range(3):
        _write(folder / f"{number}.png", (number, 2, RED))
    _write(folder / "0.jp2")
    (tmp_path / "link").symlink_to(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert _predict("--model", model, "--source", folder, "--out", tmp_path / name) == 0
    assert {p: p.read_bytes() for p in before} == before
    added = {p.name for p in folder.iterdir()} - {p.name for p in before}
    assert added == {"0.jpg", "0-2.png", "1-2.png", "2-2.png"}


def test_files_are_compared_and_not_their_names(model: Path, tmp_path: Path) -> None:
    source, out = _write(tmp_path / "images" / "a.png"), tmp_path / "out"
    second, other = _write(tmp_path / "images" / "A.png"), _write(tmp_path / "images" / "b.png")
    out.mkdir()
    os.link(other, out / "a.png")  # the same file as a source
    before = other.read_bytes()
    assert _predict("--model", model, "--source", source, second, "--out", out) == 0
    assert {p.name for p in out.iterdir()} == {"a.png", "A-2.png"}  # A.png and a.png are one file elsewhere
    assert _predict("--model", model, "--source", other, source, "--out", out) == 0
    assert other.read_bytes() == before


def test_label_maps_and_drawn_images_do_not_meet(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    network, out = segmenter(tmp_path / "s.onnx"), tmp_path / "out"
    images = tmp_path / "images"
    for name in ("a.png", "a-labels.png", "b.png"):
        _write(images / name)
    assert _predict("--model", network, "--source", images, "--maps", "--out", out) == 0
    assert len(list(out.iterdir())) == 6
    before = {p: p.read_bytes() for p in images.iterdir()}
    assert _predict("--model", network, "--source", images, "--maps", "--out", images) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert len(list(images.iterdir())) == 9


def test_mosaics_and_their_sources_do_not_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, folder = blurrer(tmp_path / "b.onnx", channels=4), tmp_path / "data"
    raw = RawImage(np.full((64, 64), 600, np.uint16), (0, 1, 1, 2), (512,) * 4, 16383)
    folder.mkdir()
    for name in ("x.dng", "denoise0.dng"):
        (folder / name).write_bytes(dng_bytes(raw))
    before = {p: p.read_bytes() for p in folder.iterdir()}
    words = ("--model", network, "--source", folder, "--out")
    assert _predict(*words, folder) == 0
    assert {p.name for p in folder.iterdir()} == {"x.dng", "denoise0.dng", "x-2.dng", "denoise0-2.dng"}
    assert _predict(*words, tmp_path, "--layout", "contest") == UsageError.exit_code
    assert "would replace a file that is read here" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in before} == before


def test_videos_do_not_meet_each_other_or_their_sources(model: Path, tmp_path: Path) -> None:
    films = [_film(tmp_path / name / "film.mp4", *columns) for name, columns in (("a", (0,)), ("b", (1, 2)))]
    before = [film.read_bytes() for film in films]
    assert _predict("--model", model, "--source", *films, "--out", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"film.mp4", "film-2.mp4"}
    assert _predict("--model", model, "--source", *films, "--out", tmp_path / "a") == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"film.mp4", "film-2.mp4", "film-3.mp4"}
    assert [film.read_bytes() for film in films] == before


def test_the_coco_file_replaces_nothing_that_is_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = _write(tmp_path / "a.png")
    for wrong, words in ((image, "would replace a file"), (model, "would replace a file"), (tmp_path, "is a folder")):
        assert _predict("--model", model, "--source", image, "--coco", wrong) == UsageError.exit_code
        assert words in capsys.readouterr().err


def test_a_name_of_the_largest_length_is_numbered_within_it(model: Path, tmp_path: Path) -> None:
    name = "\N{CJK UNIFIED IDEOGRAPH-56FE}" * 76 + ".png"  # 232 bytes; with a temporary name it must stay below 255
    sources = [_write(tmp_path / "x" / name), _write(tmp_path / "y" / name)]
    assert _predict("--model", model, "--source", *sources, "--out", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {name, f"{name[:-4]}-2.png"}


def test_what_a_folder_holds_besides_is_said_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mix"
    _write(folder / "a.png", (1, 2, RED))
    _write(folder / "sub" / "b.png")
    for name in ("c.heic", "d.gif", "e.mp4", "f.nef", ".DS_Store"):
        (folder / name).write_bytes(b"something")
    (folder / "g.jpg").symlink_to(folder / "nothing.jpg")
    words = (
        f"note: passed over in {folder}: 1 sub-folder (sub), 1 video (e.mp4), 1 RAW file (f.nef), "
        "1 broken link (g.jpg), 2 other files (c.heic, d.gif)\n"
    )
    assert _predict("--model", model, "--source", folder) == 0
    out, err = capsys.readouterr()
    assert words in err
    assert "1 image: red 1" in out
    assert main(["bench", "--engine", str(model), "--source", str(folder), "--runs", "1", "--warmup", "0"]) == 0
    assert words in capsys.readouterr().err
    assert _predict("--model", model, "--source", folder / "a.png") == 0
    assert "passed over" not in capsys.readouterr().err


def _coco(place: Path) -> list[tuple[int | str, int]]:
    return [(entry["image_id"], entry["category_id"]) for entry in json.loads(place.read_text())]


def test_coco_results_count_images_and_categories(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "i" / "000000000139.png", (1, 2, RED), (5, 5, BLUE))
    _write(tmp_path / "i" / "dog.png", (1, 2, BLUE))
    _write(tmp_path / "i" / f"{2**60}.png", (1, 2, BLUE))  # no float64 holds it
    place = tmp_path / "sub" / "coco.json"
    assert _predict("--model", model, "--source", tmp_path / "i", "--coco", place) == 0
    assert _coco(place) == [(139, 1), (139, 2), (str(2**60), 2), ("dog", 2)]
    assert json.loads(place.read_text())[0]["bbox"] == [32, 64, 32, 32]
    assert "by the model's classes from 1 on (red is 1), because they are not COCO's 80" in capsys.readouterr().err


def test_images_of_one_name_have_an_id_each(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["cam1/0001.png", "cam2/0001.png", "cam2/1.png", "cam1/7.png", "cam1/x.png", "cam1/x.jpg", "cam2/7.5.png"]
    names += ["cam2/film_000000.png", "cam2/film_0.png"]
    for name in names:
        _write(Path(name), (1, 2, RED))
    films = [_film(Path("cam1/film.mp4"), 3, 4), _film(Path("cam2/000012.mp4"), 5)]
    assert _predict("--model", model, "--source", *names, *films, "--coco", "r.json") == 0
    assert [image for image, _ in _coco(Path("r.json"))] == [
        "cam1/0001", "cam2/0001", "cam2/1", 7, "cam1/x.png", "cam1/x.jpg", "7.5", "cam2/film_000000", "film_0",
        "cam1/film_000000", "cam1/film_000001", "000012_000000",
    ]  # fmt: skip


def test_annotations_give_categories_by_name_and_ids_by_file_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "i"
    for name in ("a/1.png", "b/1.png", "2.png", "extra.png"):
        _write(images / name, (1, 2, RED), (5, 5, BLUE))
    listed = {41: "a/1.png", 42: "b/1.png", 43: "somewhere/else/2.png"}
    truth = tmp_path / "truth.json"
    data: dict[str, list[dict[str, object]]] = {
        "images": [{"id": i, "file_name": name} for i, name in listed.items()],
        "categories": [{"id": 5, "name": "Blue"}, {"id": 9, "name": "red"}, {"id": 10, "name": "green"}],
        "annotations": [],
    }
    truth.write_text(json.dumps(data))
    place = tmp_path / "r.json"
    words = ("--model", model, "--coco", place, "--annotations", truth, "--source")
    assert _predict(*words, images / "a", images / "b", images) == 0
    assert _coco(place) == [(41, 9), (41, 5), (42, 9), (42, 5), (43, 9), (43, 5)]
    assert f"--coco leaves out what {truth} does not list: {images / 'extra.png'}\n" in capsys.readouterr().err

    data["images"] = [{"id": 1, "file_name": "1.png"}]
    truth.write_text(json.dumps(data))
    assert _predict(*words, images / "a", images / "b") == DataError.exit_code
    assert "are both image 1 of" in capsys.readouterr().err
    data["categories"] = [{"id": 1, "name": "cat"}]
    truth.write_text(json.dumps(data))
    assert _predict(*words, images / "a") == DataError.exit_code
    assert "do not fit the annotations' categories" in capsys.readouterr().err
    assert _predict(*words, _film(tmp_path / "film.mp4", 1)) == UsageError.exit_code
    assert "is a video" in capsys.readouterr().err
    assert _predict("--model", model, "--source", images, "--annotations", truth) == UsageError.exit_code
    assert "--annotations needs --coco" in capsys.readouterr().err


def test_a_broken_image_does_not_shift_the_names_of_the_others(model: Path, tmp_path: Path) -> None:
    images: list[Array | Path] = []
    for name in ("a/x.png", "b/x.png", "c/x.png"):
        images.append(_write(tmp_path / name, (1, 2, RED)))
    (tmp_path / "a" / "x.png").write_bytes(b"broken")
    out = tmp_path / "out"
    assert _predict("--model", model, "--source", *images, "--out", out) == ImageError.exit_code
    assert {p.name for p in out.iterdir()} == {"x-2.png", "x-3.png"}


def test_a_file_that_cannot_be_written_does_not_end_the_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tmp_path / "images" / "a.ppm"  # its drawing would be a JPEG, which has no more than 65500 columns
    _write(tmp_path / "images" / "b.png", (1, 2, RED))
    wide.write_bytes(cv2.imencode(".ppm", np.zeros((2, 70_000, 3), np.uint8))[1].tobytes())
    out = tmp_path / "out"
    assert _predict("--model", model, "--source", tmp_path / "images", "--out", out) == OutputError.exit_code
    said, noted = capsys.readouterr()
    assert "deploykit: not written: OpenCV" in noted
    assert "a.jpg" in noted
    assert "2 images: red 1\n1 not written because their names or sizes do not allow it" in said
    assert [p.name for p in out.iterdir()] == ["b.png"]
    assert _predict("--model", model, "--source", wide, "--out", out) == OutputError.exit_code
    assert "deploykit: OpenCV" in capsys.readouterr().err


def test_only_names_and_sizes_concern_one_file() -> None:
    for number, alone in ((errno.ENAMETOOLONG, True), (errno.EINVAL, True), (errno.ENOTDIR, False), (errno.EIO, False)):
        with pytest.raises(OutputError) as raised, os_errors_as_output_errors(Path("a")):
            raise OSError(number, os.strerror(number))
        assert concerns_one_file(raised.value) == alone
    for number in (errno.ENOSPC, errno.EACCES):
        with pytest.raises(OutputError) as raised, os_errors_as_output_errors(Path("a")):
            raise OSError(number, os.strerror(number))
        assert not concerns_one_file(raised.value)
