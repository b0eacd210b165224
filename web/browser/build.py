"""Build the page that runs in the browser: static files that any web host can serve.

    npm ci --prefix web/browser
    python web/browser/build.py                                   # into build/browser
    python web/browser/build.py --weights u2netp --output site

`make browser` does both. The page's files are copied as they are, along with the runtime that npm
downloaded and the network as ONNX with float16 weights, exported and checked by export.py. The
preprocessing of images is read from that file's metadata and written to model.json.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402

import export  # noqa: E402
from src import UserError  # noqa: E402
from src.files import real_path  # noqa: E402
from src.weights.load import SHIPPED  # noqa: E402
from train_utils import cli  # noqa: E402

PACKAGE = HERE / "node_modules/onnxruntime-web"
RUNTIMES = {  # a module and its WebAssembly; the page loads one of these pairs
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded"),
    "jspi": ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify"),
}
KEYS = ("network", "img_size", "object_map", "mean", "std", "resampling", "antialias", "version")
POLICY = re.compile('http-equiv="Content-Security-Policy" content="([^"]+)"')
PREPARED = ("bilinear", True)  # the only one that the page's worker/pixels.js implements


def main(argv: list[str] | None = None) -> int:
    """Build the page and print its size; return the exit status."""
    args = parse_args(argv)
    if not isinstance(args.img_size, int | None):
        problem = "the page supports only square images; give one side"
        raise UserError(problem, "img_size", args.img_size)
    if not (PACKAGE / "dist").is_dir():
        command = f"npm ci --prefix {HERE}"
        raise UserError(f"{PACKAGE}: not found; install the runtime with npm: {command}")
    check_output(args.output)
    with tempfile.TemporaryDirectory(dir=real_path(args.output).parent) as temporary:
        page = Path(temporary) / "page"
        shutil.copytree(HERE / "page", page)
        copy_runtime(page / "runtime")
        flags = [] if args.img_size is None else ["--img-size", str(args.img_size)]
        output = ["--output", str(page / "model.onnx"), "--half-weights"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            export.main(["--weights", str(args.weights or SHIPPED), *flags, *output])
        describe_model(page)
        stamp_worker(page)
        put_in_place(page, args.output)
    print(printed.getvalue().replace(str(page), str(args.output)), end="")
    print_weight(args.output)
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the build."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    default = ROOT / "build/browser"
    text = "folder, replaced if it holds an earlier build (default: build/browser)"
    parser.add_argument("--output", type=Path, default=default, metavar="DIR", help=text)
    return parser.parse_args(argv)


def check_output(folder: Path) -> None:
    """Create the folder's parents, and check that it contains nothing but an earlier build.

    Raises:
        UserError: it is a file, contains other files, or cannot be created.
    """
    try:
        real_path(folder).parent.mkdir(parents=True, exist_ok=True)
        held = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    except OSError as error:  # a file in place of a folder, no permission
        problem = f"{error.strerror or error}; choose another folder"
        raise UserError(problem, "output", folder) from None
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file; choose a folder", "output", folder)
    others = held - list_build(folder)
    if others:
        raise UserError(f"holds {min(others)}; choose a new folder", "output", folder)


def list_build(folder: Path) -> set[str]:
    """All files and folders of a build, as named in its service worker; empty if it is not a build.

    Builds of earlier versions may have other files.
    """
    try:
        lines = (folder / "sw.js").read_text(encoding="utf-8").splitlines()[:3]
        found = [re.fullmatch(r"const (SHELL|LATER) = (\[.*\]);", line) for line in lines]
        names = [name for match in found if match for name in json.loads(match[2])]
    except (OSError, ValueError):
        return set()
    files = {"sw.js", "runtime/LICENCE.txt", *names}
    if len(names) < 2 or not all((folder / name).is_file() for name in files):
        return set()
    return files | {parent.as_posix() for name in files for parent in Path(name).parents}


def copy_runtime(folder: Path) -> None:
    """Copy the runtime's files, with its licence."""
    folder.mkdir()
    for module, binary in RUNTIMES.values():
        for name in (module, f"{binary}.mjs", f"{binary}.wasm"):
            shutil.copyfile(PACKAGE / "dist" / name, folder / name)
    package = json.loads((PACKAGE / "package.json").read_text(encoding="utf-8"))
    licence = f"{package['name']} {package['version']}, {package['license']} licence\n"
    (folder / "LICENCE.txt").write_text(licence + MIT, encoding="utf-8")


def describe_model(page: Path) -> None:
    """Write model.json: the preprocessing of images, and the sizes of the files to load."""
    props = onnx.load(page / "model.onnx").metadata_props
    metadata = {entry.key: json.loads(entry.value) for entry in props}
    if (metadata["resampling"], metadata["antialias"]) != PREPARED or "input_size" in metadata:
        raise UserError("the page supports only square images, resized bilinearly, antialiased")
    if metadata["object_map"] is None:
        raise UserError("these weights predict classes; the page needs an object map")
    runtimes = {
        name: {
            "module": module,
            "wasm": f"{binary}.wasm",
            "bytes": (page / "runtime" / f"{binary}.wasm").stat().st_size,
        }
        for name, (module, binary) in RUNTIMES.items()
    }
    size = (page / "model.onnx").stat().st_size
    about = {key: metadata[key] for key in KEYS}
    about |= {"file": "model.onnx", "bytes": size, "runtimes": runtimes}
    (page / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def stamp_worker(page: Path) -> None:
    """Write the names of all files into the service worker, and a version that changes with
    them."""
    paths = sorted(path for path in page.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(page)}\0".encode() + path.read_bytes())
    names = [path.relative_to(page).as_posix() for path in paths if path.name != "sw.js"]
    later = [name for name in names if name.startswith("runtime/") or name == "model.onnx"]
    values = {
        "VERSION": digest.hexdigest()[:16],
        "SHELL": [name for name in names if name not in later],
        "LATER": [name for name in later if name != "runtime/LICENCE.txt"],
        "POLICY": POLICY.findall((page / "index.html").read_text(encoding="utf-8"))[0],
    }
    head = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    worker = page / "sw.js"
    worker.write_text(head + worker.read_text(encoding="utf-8"), encoding="utf-8")


def put_in_place(page: Path, output: Path) -> None:
    """Move ``page`` to the output, and an earlier build to the temporary folder."""
    target = real_path(output)  # a link is kept; its target is replaced
    if target.exists():
        target.rename(page.parent / "earlier")
    page.rename(target)
    target.chmod(0o755)


def print_weight(page: Path) -> None:
    """Print the sizes of the parts, plain and gzipped."""
    files = {
        path.relative_to(page).as_posix(): (size, len(gzip.compress(path.read_bytes(), 6)))
        for path in sorted(page.rglob("*"))
        if path.is_file() and (size := path.stat().st_size)
    }
    rows = {"network": ["model.onnx"]}
    loaded = "runtime/", "model.onnx"
    rows["page"] = [name for name in files if not name.startswith(loaded)]
    for name, (module, binary) in RUNTIMES.items():
        parts = (module, f"{binary}.mjs", f"{binary}.wasm")
        rows[f"runtime {name}"] = [f"runtime/{part}" for part in parts]
    for row, names in rows.items():
        plain, packed = (sum(files[name][i] for name in names) / 1000 for i in (0, 1))
        print(f"{row:15} {plain:9.1f} kB   {packed:8.1f} kB gzipped")
    print(f"{page}: ready for any web host; visitors load the network, the page and one runtime")


MIT = """
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


if __name__ == "__main__":
    cli.run(main)
