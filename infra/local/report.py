"""``vitrail report``: write reports/index.html from what the stages have made, and open it.

python -m infra.local.report [--no-open]
"""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path

from components.command_line import application, commands_of
from components.errors import run_cli
from components.params import load_params
from flows.settings import PlatformParams, load_platform

app = application("report", "Write one page about this run, with pictures, and open it.", "infra.local.report")
main = commands_of(app)


@app.default
def report(*, no_open: bool = False) -> None:
    """Write one page about this run (data, training, scores, pictures and links), and open it in a browser.

    Args:
        no_open: Write the file and open no browser.
    """
    out = write_report(Path.cwd())
    print(f"report: {out}")
    if not no_open and not _opened(out):
        print("no browser was found here; open the file in one")


def write_report(root: Path) -> Path:
    """Write the report of the checkout ``root`` with the addresses of its servers; returns its path."""
    from components.report.build import write

    return write(root, pages(root, load_platform(root)))


def pages(root: Path, platform: PlatformParams) -> dict[str, str]:
    """The pages of MLflow and Prefect, by what they show."""
    found = {}
    for line in mlflow_pages(root, platform):
        address, _, words = line.partition("   ")
        found[f"MLflow: {words.strip() or 'experiments'}"] = address
    return {**found, "Prefect: runs of the flows": f"http://{platform.host}:{platform.prefect_port}"}


def mlflow_pages(root: Path, platform: PlatformParams) -> list[str]:
    """MLflow's pages of this checkout's experiment, a line each: address, then what it shows."""
    from components.tracking import TrackingParams
    from components.tracking.pages import look_at
    from components.tracking.store import resolve

    tracking = load_params(root / "params/tracking.yaml", TrackingParams)
    store = resolve(os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri)
    return look_at(store if store.startswith("http") else platform.mlflow_url, store, tracking.experiment)


def _opened(page: Path) -> bool:
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.name == "nt" or _is_mac()):
        return False
    return webbrowser.open(page.resolve().as_uri())


def _is_mac() -> bool:
    import sys

    return sys.platform == "darwin"


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
