"""Scoring of outputs for whole images, with metrics per class or per image."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from deploykit.runtime.evaluate.meter import Finished, Meter
from deploykit.runtime.evaluate.report import Evaluation, ImageEvaluation

__all__ = ["ImageMeter"]


class ImageMeter(Meter):
    """A :class:`Meter` whose evaluation is an :class:`ImageEvaluation`.

    Attributes:
        notes: what a reader of the numbers must know.
    """

    stage: ClassVar[str] = "score"
    notes: tuple[str, ...] = ()

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the metrics of all images together, by name."""

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each class, by its name."""
        return {}

    def per_image(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each image, by its file name."""
        return {}

    def counts(self) -> dict[str, int]:
        """Return how much was evaluated, besides the number of images."""
        return {}

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that computed the metrics."""
        return {}

    def evaluation(self, finished: Finished) -> Evaluation:
        """See :meth:`Meter.evaluation`."""
        canvas = self.spec.input
        free = canvas.fit.kind == "pad" and canvas.dynamic == "shape"
        tiling = finished.predictor.tiling
        about = finished.common(self.task, self.notes)
        about["versions"] |= self.versions()
        return ImageEvaluation(
            metrics=self.metrics(),
            per_class=self.per_class(),
            per_image=self.per_image(),
            counts={"images": len(self.paths), **self.counts()},
            settings={
                "fit": canvas.fit.kind,
                "size": "each image's own" if free and tiling is None else list(canvas.size),
                "providers": list(finished.predictor.session.providers),
            },
            **about,
        )
