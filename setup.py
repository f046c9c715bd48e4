"""Everything is in pyproject.toml; this file only refuses to build half a package."""

from pathlib import Path

from setuptools import setup

for part in ("models", "export", "runtime", "cpp_plugins"):
    if not (Path(__file__).parent / "deploykit" / part).is_dir():
        raise SystemExit(
            f"deploykit/{part} must be a symbolic link to the folder {part}, and is not: clone with symbolic links "
            "(git config core.symlinks true), or the package would lack it"
        )

setup()
