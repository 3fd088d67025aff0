"""``params/tracking.yaml``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from components.params import Strict

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def known_scheme(uri: str) -> bool:
    """Whether ``uri`` names a store that MLflow still takes (plain folders no longer are)."""
    return uri.split(":")[0].split("+")[0] in SCHEMES


class TrackingParams(Strict):
    """``params/tracking.yaml``: where metrics, models and pictures go."""

    uri: str = Field(min_length=1)  # sqlite:///path or http://host:port; MLFLOW_TRACKING_URI goes before it
    experiment: str = Field(min_length=1)
    system_metrics: bool = True  # CPU, memory, disk, network and GPU of every run
    required: bool = False  # whether a store that is away when a run starts ends it; else it is sent later
    spool: Path = Path("scratch/tracking")  # folder of what was recorded and not yet sent
    spool_megabytes: int = Field(
        1024, ge=1, le=1_000_000
    )  # most that one run may keep there; what is more is dropped and counted
    wait_at_end: float = Field(20.0, ge=0, le=86_400)  # seconds without progress

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        if not known_scheme(uri):
            raise ValueError("an MLflow store is sqlite:///FILE, or http://HOST:PORT of a server")
        return uri
