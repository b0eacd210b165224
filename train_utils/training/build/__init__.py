"""Build the parts of a run from its settings: data sets, folder, network, loss, trainer."""

from .data import check_paths, check_run_files, make_datasets, make_losses, report_unused_classes
from .folder import claim, find_folder
from .network import make_network, resolve_freeze_bn
from .schedule import size_starts
from .trainer import make_record, make_teacher, make_trainer, restore, start_weights

__all__ = [
    "check_paths",
    "check_run_files",
    "claim",
    "find_folder",
    "make_datasets",
    "make_losses",
    "make_network",
    "make_record",
    "make_teacher",
    "make_trainer",
    "report_unused_classes",
    "resolve_freeze_bn",
    "restore",
    "size_starts",
    "start_weights",
]
