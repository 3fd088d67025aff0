"""``python -m components.doctor``: see run.py."""

from components.doctor.run import main
from components.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main))
