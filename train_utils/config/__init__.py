"""The settings of a training run, each declared once in one of four files: default, kind, help, and
whether a resumed run may change it.

The flags of ``train.py``, recipe files, ``args.json`` and a checkpoint's record of its run are all
made from :class:`Settings`.
"""

from .run import default_workers
from .settings import DECLARATIONS, GROUPS, Settings

__all__ = ["DECLARATIONS", "GROUPS", "Settings", "default_workers"]
