"""Writes the files that transformers and transformers.js need in a model's folder.

The code in the folder is bundled from this library's own source, so that there is only one
implementation.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from ...files import atomic_path, save_json
from ...networks.base import Network
from .transformers_js import export_whole

CODE, PREPROCESSOR, ONNX = "modeling_u2net.py", "preprocessor_config.json", "onnx/model.onnx"
_MODEL = "U2NetForImageSegmentation"
_SOURCE = Path(__file__).with_name("remote.py")


def write_files(model: Network, folder: Path, onnx: bool = False) -> None:
    """Write what transformers needs in addition to ``config.json`` and ``model.safetensors``.

    Args:
        model: the network of the folder, not fused; it is not changed.
        folder: gets the code and ``preprocessor_config.json``.
        onnx: add ``onnx/model.onnx`` too, which transformers.js loads.

    Raises:
        UserError: the ONNX file cannot be made, or its masks differ from the network's.
    """
    if onnx:
        export_whole(model, folder / ONNX)
    elif (folder / ONNX).exists():
        reason = "was made from the folder's earlier weights"
        raise UserError(f"{folder / ONNX}: {reason}", advice="pass {onnx}, or delete it")
    size = model.img_size
    processor = {
        "auto_map": {"AutoImageProcessor": f"{CODE[:-3]}.U2NetImageProcessor"},
        "size": {"height": size, "width": size},
        "image_mean": list(model.config.mean),
        "image_std": list(model.config.std),
        "activation": model.config.activation,
        "object_map": model.config.object_map,
    }
    if onnx:  # for transformers.js, whose file takes whole images; the Python code ignores them
        processor |= {"do_resize": False, "do_rescale": False, "do_normalize": False}
        processor["feature_extractor_type"] = "ImageFeatureExtractor"  # the plainest one
    save_json(processor, folder / PREPROCESSOR)
    with atomic_path(folder / CODE) as temporary:
        Path(temporary).write_text(bundle_code(), encoding="utf-8")


def describe(model: Network) -> dict[str, Any]:
    """The entries of ``config.json`` that transformers and transformers.js read."""
    module, config = CODE[:-3], model.config
    labels = ["background", "foreground"]
    if config.object_map is None:
        labels = [f"class {i}" for i in range(config.out_ch)]
    return {
        "model_type": "isnet",  # see remote.py
        "architectures": [_MODEL],
        "auto_map": {
            "AutoConfig": f"{module}.{_MODEL}Config",
            "AutoModelForImageSegmentation": f"{module}.{_MODEL}",
        },
        "custom_pipelines": {
            "image-segmentation": {
                "impl": f"{module}.U2NetPipeline",
                "pt": ["AutoModelForImageSegmentation"],
                "type": "image",
            }
        },
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "transformers.js_config": {"dtype": "fp32"},  # in browsers, the default would be 8 bits
    }


# The code


class _Module(NamedTuple):
    lines: list[str]
    definitions: dict[str, ast.stmt]


@cache
def bundle_code() -> str:
    """Bundle ``remote.py`` and all that it needs from this library into one file."""
    bundle = _Bundle()
    for name, node in _read(_SOURCE).definitions.items():
        if isinstance(node, ast.ClassDef):
            bundle.add(_SOURCE, name)
    return bundle.text()


class _Bundle:
    """Definitions of several modules, and the imports of other packages that they need."""

    def __init__(self) -> None:
        self._imports: dict[str, set[str]] = {}
        self._parts: dict[Path, dict[int, str]] = {}  # by their first lines
        self._files: dict[str, Path] = {}

    def add(self, file: Path, name: str) -> None:
        """Add the definition of a name in a module, and all that it uses, except built-ins."""
        lines, definitions = _read(file)
        node = definitions.get(name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._add_import(file, node, name)
        elif node and name not in self._files:
            self._files[name] = file
            methods = [part for part in getattr(node, "body", []) if _imports_library(part)]
            self._parts.setdefault(file, {})[node.lineno] = _cut(lines, node, methods)
            for part in ast.iter_child_nodes(node):
                for used in ast.walk(part) if part not in methods else ():
                    if isinstance(used, ast.Name):
                        self.add(file, used.id)
        elif node and self._files[name] != file:
            raise ValueError(f"{name}: is in {file} and in {self._files[name]}")

    def _add_import(self, file: Path, node: ast.Import | ast.ImportFrom, name: str) -> None:
        alias = next(a for a in node.names if name == (a.asname or a.name.split(".")[0]))
        if isinstance(node, ast.ImportFrom) and node.level:
            self.add(_find_module(file, node), alias.name)
        else:
            source = getattr(node, "module", "")
            self._imports.setdefault(source, set()).add(ast.unparse(alias))

    def text(self) -> str:
        """The bundle's text, in the order in which Python would run the modules."""
        head = [
            '"""A network of u2net-toolkit; save_pretrained has written this file."""',
            "",
        ]
        for source, names in sorted(self._imports.items()):
            if source:
                head.append(f"from {source} import {', '.join(sorted(names))}")
            else:
                head += [f"import {name}" for name in sorted(names)]
        files: list[Path] = []
        _sort_files(_SOURCE, files)
        parts = [text for file in files for _, text in sorted(self._parts.get(file, {}).items())]
        return "\n\n\n".join(["\n".join(head), *parts]) + "\n"


@cache
def _read(file: Path) -> _Module:
    """A module's lines, and its definitions and imports, by name."""
    text = file.read_text(encoding="utf-8")
    definitions: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.asname or a.name.split(".")[0] for a in node.names]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        else:
            continue
        definitions |= dict.fromkeys(names, node)
    return _Module(text.splitlines(), definitions)


def _find_module(file: Path, node: ast.ImportFrom) -> Path:
    """The file that a relative import in another file names."""
    parts = (node.module or "").split(".")
    return file.parents[node.level - 1].joinpath(*parts).with_suffix(".py")


def _sort_files(file: Path, found: list[Path]) -> None:
    """Append a module to ``found``, after those that it imports."""
    for node in _read(file).definitions.values():
        if isinstance(node, ast.ImportFrom) and node.level:
            module = _find_module(file, node)
            if module not in found:
                _sort_files(module, found)
    if file not in found:
        found.append(file)


def _imports_library(node: ast.AST) -> bool:
    """Whether a method imports other parts of this library, which are not in the file."""
    return any(isinstance(part, ast.ImportFrom) and part.level for part in ast.walk(node))


def _cut(lines: list[str], node: Any, without: list[Any]) -> str:
    """The text of a definition, without some of its methods."""

    def numbers(part: Any) -> range:
        first = min([part.lineno, *(d.lineno for d in getattr(part, "decorator_list", []))])
        return range(first - 1, part.end_lineno)

    cut = {i for part in without for i in numbers(part)}
    text = "\n".join(lines[i] for i in numbers(node) if i not in cut)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip()
