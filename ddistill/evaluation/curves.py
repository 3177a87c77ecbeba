"""Records of metrics.jsonl as training curves."""

from collections.abc import Iterable, Mapping
from typing import Any

from ddistill.evaluation.plots import Curve


def curves_from_metrics(records: Iterable[Mapping[str, Any]], key: str = "loss") -> list[Curve]:
    """Curves of `key` for every stage, in the order in which the stages come.

    A record counts if it has "step" and `key`, or `key/LABEL` for several curves; a list under
    `key` is one value a student. Records lacking "stage" belong to stage "training". Where a
    resumed run repeats a step, the later record counts.
    """
    points: dict[tuple[str, str], dict[float, float]] = {}
    for record in records:
        if "step" not in record:
            continue
        stage = str(record.get("stage", "training"))
        for label, value in _values(record, key):
            points.setdefault((stage, label), {})[record["step"]] = value
    return [
        Curve(stage, sorted(values), [values[s] for s in sorted(values)], label)
        for (stage, label), values in points.items()
    ]


def _values(record: Mapping[str, Any], key: str) -> Iterable[tuple[str, float]]:
    for name, value in record.items():
        if name == key and isinstance(value, list):
            several = len(value) > 1
            for i, item in enumerate(value):
                yield (f"student {i}" if several else ""), float(item)
        elif name == key and isinstance(value, int | float):
            yield "", float(value)
        elif name.startswith(f"{key}/") and isinstance(value, int | float):
            yield name[len(key) + 1 :], float(value)
