"""List the named weights, or fetch some before the machine goes offline.

    python fetch_weights.py
    python fetch_weights.py --fetch u2net u2netp

Every script accepts such a name in place of a file (--weights u2net) and fetches the weights when
first needed. A file is checked against its published checksum, kept in the user's cache folder (or
in the one that U2NET_TOOLKIT_CACHE names) and converted once. Files from rembg are used too. A file
may also be put into that folder by hand, and U2NET_TOOLKIT_URL names another server.
"""

import argparse

from src.weights.load import SHIPPED, find_weights, is_converted
from src.weights.named import NAMES, PUBLISHED, Published, cache_folder, find_onnx
from train_utils import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of fetch_weights.py."""
    parser = cli.make_parser(__doc__)
    text = "fetch these, unless they are on this machine"
    parser.add_argument("--fetch", nargs="+", choices=NAMES, default=[], metavar="NAME", help=text)
    return parser.parse_args(argv)


def describe_place(entry: Published) -> str:
    """Where the weights are on this machine."""
    if is_converted(entry):
        return "in the cache"
    if found := find_onnx(entry):
        return "in the cache" if found == entry.path else f"in {found.parent}"
    return "to be fetched"


def make_table() -> str:
    """A table of all named weights, one per line."""
    rows = [("name", "MB", "network", "licence", "where", "finds, by")]
    size = f"{SHIPPED.stat().st_size / 1e6:.1f}"
    rows.append(("lite", size, "u2net_lite", "Apache-2.0", "included", "salient objects, ours"))
    for entry in PUBLISHED.values():
        about = f"{entry.purpose}, {entry.authors}"
        size = f"{entry.megabytes:g}"
        place = describe_place(entry)
        rows.append((entry.name, size, entry.network, entry.licence, place, about))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Fetch the requested weights, or print the table; returns the exit status."""
    args = parse_args(argv)
    for name in args.fetch:
        print(f"{name}: {find_weights(name)}", flush=True)
    if not args.fetch:
        print(f"{make_table()}\ncache: {cache_folder()}")
    return 0


if __name__ == "__main__":
    cli.run(main)
