"""What came out of one source on one set, and what is to be said of it."""

from dataclasses import dataclass, field
from typing import Any

from ..data.pairs import Inventory
from .evaluate import Evaluation
from .maps import Maps
from .report import few
from .semantic import class_names
from .sources import Source


@dataclass
class Row:
    """One source on one set: a row of the table."""

    source: Source
    name: str  # of the set
    data: Inventory
    maps: Maps | None
    evaluation: Evaluation
    about: dict[str, Any]  # what the scores depend on, for JSON
    faults: dict[int, str] = field(default_factory=dict)  # of pictures that could not be scored

    def class_names(self) -> list[str]:
        """Of all classes, as plots and lists show them."""
        return names_of(self.data, self.about["num_classes"])

    def columns(self, scores: dict[str, Any]) -> dict[str, float | None]:
        """A picture's scores for the CSV: lists by class become a column for each."""
        plain = {key: value for key, value in scores.items() if not isinstance(value, list)}
        ious = scores.get("class_iou", [])
        names = self.class_names() if ious else []
        return plain | {f"iou {name}": iou for name, iou in zip(names, ious, strict=True)}

    def how(self) -> str:
        """In a few words, what every figure depends on."""
        full = self.about.get("normalize", False)
        stretched = "each map stretched to its full range" if full else "maps as they are"
        if not self.source.predictor:
            return stretched
        return f"{stretched}, network at {self.about['img_size']}² in {self.about['precision']}"

    def notes(self) -> list[str]:
        """What deserves a word beside the figures."""
        said = [f"{self.name}: {note}" for note in self.data.notes]
        if self.source.predictor:
            said.insert(0, f"{self.source.path}: {self.source.predictor.origin}")
        empty = self.evaluation.results.get("empty_masks")
        if empty:
            said.append(f"{self.name}: {empty} empty masks, each counted with F = 0")
        if self.maps:
            where = f"{self.maps.folder} for {self.name}"
            if self.maps.resized:
                said.append(
                    f"{where}: {self.maps.resized} maps resized, of another size than their mask"
                )
            if self.maps.missing:
                names = few(self.maps.missing)
                said.append(f"{where}: no map of {len(self.maps.missing)} pictures: {names}")
            if self.maps.extra:
                names = few(self.maps.extra)
                said.append(f"{where}: no mask for {len(self.maps.extra)} maps: {names}")
        return said


def names_of(data: Inventory, classes: int) -> list[str]:
    """Of the classes, by the set's classes.txt if it has one."""
    return class_names(data.pairs[0].image.parent.parent, classes)
