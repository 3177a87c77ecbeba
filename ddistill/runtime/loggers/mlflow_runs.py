"""MLflow: one MLflow run a stage, in an experiment with the name of the config."""

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from time import time

from ddistill.runtime.files import read_object_or_none, write_text
from ddistill.runtime.loggers.protocol import LogTarget, Picture
from ddistill.runtime.schemas import ANY
from ddistill.typing import JsonRecord

# Limits of MLflow's servers on one request, and on the length of a parameter.
_MOST_PARAMETERS, _MOST_METRICS, _LONGEST = 100, 1000, 500


class MLflow:
    """A run of MLflow that the next process continues.

    The environment variable MLFLOW_TRACKING_URI names the server or the database; without it
    MLflow chooses (mlflow.db in the current folder). The id of the run is kept in
    WORKDIR/mlflow/STAGE.json.
    """

    def __init__(self, target: LogTarget):
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        path = target.workdir / "mlflow" / f"{target.stage}.json"
        noted = read_object_or_none(path, ANY) if target.step else None
        if noted is not None and noted.get("tracking_uri") == self._client.tracking_uri:
            self._id = str(noted.get("run_id"))
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(target.run)
        experiment = found.experiment_id if found else self._client.create_experiment(target.run)
        name = f"{target.workdir.name}/{target.stage}"
        tags = {"workdir": str(target.workdir.absolute()), "stage": target.stage}
        run = self._client.create_run(experiment, run_name=name, tags=tags)
        self._id = run.info.run_id
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            path, json.dumps({"run_id": self._id, "tracking_uri": self._client.tracking_uri})
        )

    def config(self, settings: JsonRecord) -> None:
        """Logs the settings as parameters of dotted names, and in full as config.json."""
        self._client.log_dict(self._id, dict(settings), "config.json")
        known = self._client.get_run(self._id).data.params  # parameters cannot be logged twice
        every = [
            self._entities.Param(name, text[:_LONGEST])
            for name, text in _flat(settings)
            if name not in known
        ]
        for start in range(0, len(every), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=every[start : start + _MOST_PARAMETERS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs all values at the step, "NAME/K" as "NAME.K".

        MLflow's store of files has a file NAME for the metric NAME, and no folder beside it.
        """
        now, named = int(1000 * time()), {n.replace("/", "."): v for n, v in values.items()}
        every = [self._entities.Metric(n, v, now, step) for n, v in named.items()]
        for start in range(0, len(every), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=every[start : start + _MOST_METRICS])

    def images(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Logs all pictures at the step."""
        for name, picture in pictures.items():
            self._client.log_image(self._id, picture, key=name, step=step)

    def close(self) -> None:
        """Marks the MLflow run as finished."""
        self._client.set_terminated(self._id)


def _flat(settings: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Settings that are set, by dotted name, as text."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif settings not in (None, "", []):
        yield path, str(settings)
