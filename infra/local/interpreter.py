"""Says in one line, before anything is installed, whether this Python fits; `make install` asks it first.

The file runs on any Python from 3.6 on: what is too old must still be able to say so.
"""

import os
import platform
import shutil
import sys

FIRST, LAST = (3, 11), (3, 13)  # CPython, as pyproject.toml promises
MACHINES = ("x86_64", "amd64", "aarch64", "arm64")


def complaint(implementation: str, version: "tuple[int, int]", machine: str, found: "str | None") -> str:
    """The line that says what does not fit and what does, or an empty string.

    Args:
        implementation: CPython, PyPy, ...
        version: major and minor of the Python that is asked.
        machine: as ``platform.machine()`` calls it.
        found: name of another Python on the PATH that fits, or None.
    """
    if implementation == "CPython" and FIRST <= version <= LAST and machine.lower() in MACHINES:
        return ""
    offered = f"CPython {FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]} on x86-64 or arm64"
    fix = f"make install PYTHON={found or 'its-name, once one is installed'}"
    return f"error: this is {implementation} {version[0]}.{version[1]} on {machine}; Vitrail needs {offered}: {fix}"


def another() -> "str | None":
    """The newest Python on the PATH that fits and starts; None when there is none."""
    for minor in range(LAST[1], FIRST[1] - 1, -1):
        name = f"python3.{minor}"
        if shutil.which(name) and os.system(f"{name} -c '' >{os.devnull} 2>&1") == 0:
            return name
    return None


if __name__ == "__main__":
    asked = (platform.python_implementation(), sys.version_info[:2], platform.machine())
    if complaint(*asked, found=None):
        sys.exit(complaint(*asked, found=another()))
