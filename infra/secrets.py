"""Random passwords for the servers in containers, made once: files for compose and for kustomize.

    python -m infra.secrets            # writes infra/compose/secrets/ and infra/kubernetes/stack/secrets/

Git ignores both folders. What is there already stays, so that a database's password never changes beneath it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from components.command_line import application, commands_of
from components.errors import run_cli

FOLDERS = (Path("infra/compose/secrets"), Path("infra/kubernetes/stack/secrets"))


def contents() -> dict[str, str]:
    """A set of files with new passwords, by name. Each service is given its own file alone."""
    database, prefect, mlflow, ray = (secrets.token_urlsafe(32) for _ in range(4))
    access, secret = secrets.token_hex(10), secrets.token_urlsafe(32)
    s3 = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    at = f"vitrail:{database}@postgres:5432"
    clients = {"PREFECT_API_AUTH_STRING": f"vitrail:{prefect}", "MLFLOW_TRACKING_USERNAME": "vitrail",
               "MLFLOW_TRACKING_PASSWORD": mlflow, "RAY_AUTH_TOKEN": ray}  # fmt: skip
    files = {
        "postgres.env": {"POSTGRES_USER": "vitrail", "POSTGRES_PASSWORD": database},
        "s3.env": {"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret},
        "prefect.env": {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{at}/prefect",
            "PREFECT_SERVER_API_AUTH_STRING": f"vitrail:{prefect}",
        },
        "mlflow.env": {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{at}/mlflow",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
            **s3,
        },
        "worker.env": clients | s3,
        "ray.env": {"RAY_AUTH_TOKEN": ray, **s3},
    }
    made = {name: "".join(f"{key}={value}\n" for key, value in values.items()) for name, values in files.items()}
    made["mlflow-auth.ini"] = (
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = postgresql+psycopg2://{at}/mlflow_auth\n"
        "admin_username = vitrail\n"
        f"admin_password = {mlflow}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return made


def write(folder: Path) -> bool:
    """Write a set to ``folder``, which only its owner may read; False, and nothing written, when one is there."""
    if folder.exists():
        return False
    folder.mkdir(parents=True, mode=0o700)
    for name, text in contents().items():
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    return True


app = application("secrets", "Passwords for the servers in containers.", "infra.secrets")
main = commands_of(app)


@app.default
def secrets_files() -> None:
    """Write the passwords that are missing, and print where they are; the passwords are never shown."""
    for folder in FOLDERS:
        print(f"{folder}: {'written' if write(folder) else 'is there already, left as it is'}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
