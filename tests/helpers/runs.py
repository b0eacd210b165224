"""A small training run, and its log."""

import csv

import train
from helpers.data import SMALL_TABLE

SIZES = ["--img-size", "48", "--crop-size", "40", "--batch-size", "4"]
RECIPE = ["--model", str(SMALL_TABLE), "--epochs", "3", "--eval-interval", "1", "--ema", "0.9"]
FLAGS = [*SIZES, *RECIPE, "--workers", "0", "--device", "cpu", "--amp", "off"]


def run(data, folder, *flags):
    return train.main(["--data-path", str(data), "--output-dir", str(folder), *FLAGS, *flags])


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))
