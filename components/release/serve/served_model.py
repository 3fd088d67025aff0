"""The code of a served model, which MLflow runs when it loads one: see :mod:`components.release.serve.serving`."""

from components.release.serve.serving import open_model
from components.tracking.pyfunc import publish

publish(open_model)
