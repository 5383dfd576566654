"""Makes the problems importable."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parent))
