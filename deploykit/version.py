"""The version of deploykit and its addresses."""

__all__ = ["DOCS_URL", "REPOSITORY_URL", "__version__"]

__version__ = "0.1.0"

REPOSITORY_URL = "https://github.com/deploykit-vision/deploykit"

DOCS_URL = "https://deploykit-vision.readthedocs.io"
