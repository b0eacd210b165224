"""Annotations of images: objects in COCO, LabelMe and YOLO files, drawn when masks are read.

The rest of the package only sees an image and a :class:`~.draw.Drawing`, which returns its mask.
"""

from .draw import Drawing
from .find import AnnotatedSet, Picture, find_annotated

__all__ = ["AnnotatedSet", "Drawing", "Picture", "find_annotated"]
