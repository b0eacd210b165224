"""Build the single package u2net from the folders of the clone; pyproject.toml has the rest.

In the clone the library is called src, and train_utils, web and the scripts are next to it. Names
this common must not become top-level packages in users' environments, so everything is installed
inside u2net: the files are copied, and imports and commands are renamed in the copies.
"""

import re
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

COMMANDS = run_path("src/commands.py")["SCRIPTS"]  # each script's subcommand of u2net
FOLDERS = {"src": "u2net", "train_utils": "u2net.train_utils", "web": "u2net.web"}
DATA_SETS = ("my_dataset", "transforms")  # what scripts and users import
MODULES = {name: f"u2net.scripts.{name}" for name in (*COMMANDS, *DATA_SETS)}
PACKAGES = {
    FOLDERS[top] + rest: (top + rest).replace(".", "/")
    for name in find_packages(include=[pattern for top in FOLDERS for pattern in (top, f"{top}.*")])
    for top, rest in [(name.partition(".")[0], name.removeprefix(name.partition(".")[0]))]
}


def rename(source: str) -> str:
    """A file's text for the package, with imports and commands renamed."""
    for name, new in (FOLDERS | MODULES).items():
        source = re.sub(
            rf"^([ >]*from ){name}(?=[. ][\w. ]*import )", rf"\1{new}", source, flags=re.M
        )
    source = re.sub(r"python -m (?=train_utils\.)", "python -m u2net.", source)
    source = source.replace("train_multi_GPU.py", "-m u2net train")
    scripts = "|".join(COMMANDS)
    source = re.sub(
        rf"(?:python )?\b({scripts})\.py\b", lambda found: f"u2net {COMMANDS[found[1]]}", source
    )
    return re.sub(r"'\.\[({?\w+}?)\]'", r"'u2net-toolkit[\1]'", source)


class BuildPackage(build_py):
    """Copies modules, with imports and commands renamed."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if package != "u2net.scripts" or entry[1] in MODULES]

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        target, copied = super().build_module(module, module_file, package)
        path = Path(target)
        path.write_text(rename(path.read_text(encoding="utf-8")), encoding="utf-8")
        return target, copied


setup(
    cmdclass={"build_py": BuildPackage},
    package_dir={**PACKAGES, "u2net.scripts": ".", "u2net.shipped": "weights"},
    packages=[*PACKAGES, "u2net.scripts", "u2net.shipped"],
    package_data={
        "u2net": ["py.typed"],
        "u2net.shipped": ["*.safetensors", "README.md"],
        "u2net.train_utils.training.kernels": ["*.cpp"],
    },
    include_package_data=False,
)
