-- What the servers keep apart; PostgreSQL's image runs this once, on an empty volume.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
