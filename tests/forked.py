"""Work in other processes: in a fork of this one, and for processes that a test starts."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from deploykit.runtime.arrays import Array
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result

__all__ = ["facts", "forked", "predicted"]

SECONDS = 60  # after which a process that hangs is killed


def forked(work: Callable[[], object]) -> None:
    """Do some work in a fork of this process, and fail with what it says where it fails."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads
        child = os.fork()
    if not child:
        import signal

        signal.alarm(SECONDS)
        gc.freeze()  # what earlier tests left (a builder of TensorRT) must not be freed in another process
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)  # which leaves pytest's own end to the process that it belongs to
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the fork ended with {code}: {text}"


def facts(result: Result) -> tuple[object, ...]:
    """All that was found in an image, as bytes."""
    points = b"" if result.keypoints is None else result.keypoints.tobytes()
    return (result.size, result.boxes.tobytes(), result.scores.tobytes(), result.labels.tobytes(), points)


def predicted(model: Predictor[Result], image: Array) -> tuple[object, ...]:
    """The facts of one image."""
    return facts(model(image))


def main() -> None:
    """Send a predictor to processes that are started in the way that is named, and print what they find."""
    import deploykit
    from deploykit.runtime.images.reading import read_image

    way, path, image, how = sys.argv[1:]
    context: Any = multiprocessing.get_context(way)
    model = deploykit.load(path, task="keypoints", threads=2, conf=0.1)
    pixels = read_image(image)
    expected = predicted(model, pixels)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = [pool.submit(predicted, model, pixels) for _ in range(2)]
        assert [each.result(SECONDS) for each in found] == [expected] * 2
    print(len(expected[1]) // 16, how)  # type: ignore[arg-type]  # bytes of boxes


if __name__ == "__main__":
    main()
