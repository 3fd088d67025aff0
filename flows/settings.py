"""What the orchestration reads: ``params/platform.yaml``, and ``params/pipeline.yaml`` as the stages do."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from components.params import Strict, load_params
from components.pipeline import PIPELINE, Continued, PipelineParams, Student, load_pipeline

PLATFORM = Path("params/platform.yaml")

__all__ = [
    "PIPELINE",
    "PLATFORM",
    "Continued",
    "PipelineParams",
    "PlatformParams",
    "Student",
    "load_pipeline",
    "load_platform",
]


class PlatformParams(Strict):
    """``params/platform.yaml``: the local stack and how stages are launched and ended."""

    host: str = Field(min_length=1)  # address that the servers listen on
    prefect_port: int = Field(ge=1, le=65535)
    mlflow_port: int = Field(ge=1, le=65535)
    work_pool: str = Field(min_length=1)  # Prefect's process pool
    runs_at_once: int = Field(ge=1, le=4096)  # flow runs that the pool works on at the same time
    worker_poll: float = Field(gt=0, le=1_000_000)  # seconds between two looks of the worker for a queued run
    start_timeout: float = Field(gt=0, le=1_000_000)  # seconds that a server gets to become healthy
    stop_grace: float = Field(gt=0, le=1_000_000)  # seconds between SIGTERM and SIGKILL for servers and the worker
    stage_grace: float = Field(gt=0, le=1_000_000)  # seconds between SIGTERM and SIGKILL for a cancelled stage
    cluster_poll: float = Field(gt=0, le=1_000_000)  # seconds between two looks at a job of several nodes
    cluster_grace: float = Field(gt=0, le=1_000_000)  # seconds that a cancelled job gets to be gone
    silent_run: float = Field(ge=10, le=1_000_000)  # seconds without a heartbeat after which a run counts as gone
    own_checkout: bool  # whether each run gets a checkout of its own below runs/
    checkouts_kept: float = Field(ge=0, le=1_000_000)  # days after the good end of its run that a checkout is deleted
    busy_retries: int = Field(ge=0, le=1_000_000)  # tries when another process holds DVC's lock
    busy_delay: float = Field(gt=0, le=1_000_000)  # seconds between those tries

    @property
    def prefect_api(self) -> str:
        """The URL of Prefect's API."""
        return f"http://{self.host}:{self.prefect_port}/api"

    @property
    def mlflow_url(self) -> str:
        """The URL of the MLflow server and its UI."""
        return f"http://{self.host}:{self.mlflow_port}"


def load_platform(root: Path = Path()) -> PlatformParams:
    """``params/platform.yaml`` below ``root``."""
    return load_params(root / PLATFORM, PlatformParams)
