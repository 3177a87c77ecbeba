"""Packages of the wheel, and a build that leaves no files in the source tree.

Everything else is in pyproject.toml, which can neither add a package to those that setuptools finds
nor name a temporary folder.
"""

import atexit
import shutil
import sys
import tempfile

from setuptools import find_packages, setup

# The config files lie beside the package, so that `--config=configs/NAME.py` works in a clone. In a
# wheel they are the folder `configs` of the package (ddistill/config_names.py finds either).
PACKAGES = [*find_packages(include=["ddistill", "ddistill.*"]), "ddistill.configs"]
FOLDERS = {"ddistill.configs": "configs"}


def build_folders() -> dict[str, dict[str, str]]:
    """Options that move `build` and `ddistill.egg-info` out of the source tree.

    An sdist lists its files relative to the tree, and an editable installation is the tree.
    """
    if {"sdist", "editable_wheel", "develop"} & set(sys.argv):
        return {}
    folder = tempfile.mkdtemp(prefix="ddistill-build-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"build": {"build_base": folder}, "egg_info": {"egg_base": folder}}


setup(packages=PACKAGES, package_dir=FOLDERS, options=build_folders())
