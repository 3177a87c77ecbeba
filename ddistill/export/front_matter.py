"""The metadata of a model card as the Hugging Face hub reads them: YAML at the top of README.md."""

import re
import unicodedata
from collections.abc import Sequence

import yaml

from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row
from ddistill.text import printable
from ddistill.typing import JsonRecord

# The hub has no task for class-conditional images; the tag says it.
TASK, TEXT_TASK = "unconditional-image-generation", "text-to-image"
# Identifiers of licences that the hub knows; it takes other names as `license_name`.
_KNOWN = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m "
    "bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c "
    "mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql "
    "unknown unlicense wtfpl zlib"
)
LICENCES = frozenset(_KNOWN.split())
# The hub's ids of sets that TFDS has under these names.
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "imagenet2012": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
}
# Rows about the network and the machine; they are no evaluation of images.
_COSTS = ("ms_per_image", "parameters")
# Rows that are means over subsets of `Protocol.count` images.
_OF_SUBSETS = ("recall", "coverage", "class_tv")
_TO_TEACHER = ("psnr_to_teacher", "mse_to_teacher")


def front_matter(metadata: JsonRecord) -> str:
    """Metadata as YAML between lines of dashes, in their order."""
    # Quotes whatever YAML would read as something else: names of users hold any text.
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text}---\n"


def licence_metadata(licence: str) -> JsonRecord:
    """The keys of a licence: an identifier that the hub knows, or "other" with a name."""
    known = licence.strip().lower() or "unknown"
    if known in LICENCES:
        return {"license": known}
    return {"license": "other", "license_name": identifier(licence)}


def identifier(text: str) -> str:
    """Text as lower case letters, digits, dots and single hyphens; "unnamed" for nothing left."""
    plain = unicodedata.normalize("NFKD", printable(text)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9.]+", "-", plain.lower()).strip("-.")[:96] or "unnamed"


def model_index(
    model: str, data: str, dataset: str, rows: Sequence[Row], task: str = TASK
) -> list[JsonRecord]:
    """The scores of a student, for the key `model-index`; empty without scores.

    Args:
      model: name of the model.
      data: name of the data set.
      dataset: its id on the hub; "" for none.
      rows: scores.
      task: of the hub.
    """
    metrics = [_metric(row) for row in rows if row.metric not in _COSTS]
    if not metrics:
        return []
    result = {
        "task": {"type": task, "name": "Image generation"},
        "dataset": {"type": dataset or identifier(data), "name": printable(data)},
        "metrics": metrics,
    }
    return [{"name": printable(model), "results": [result]}]


def _metric(row: Row) -> JsonRecord:
    """A score under a name that says in which features, and of how many images, it is one."""
    arguments: dict[str, object] = {"nfe": row.nfe, "seed": row.seed}
    protocol = _protocol(row)
    about: list[str] = []
    if protocol is not None:
        more, about = _measured(row.metric, protocol)
        arguments |= more
    if row.metric.endswith("_to_teacher") and row.reference_teacher:
        arguments["reference_teacher"] = row.reference_teacher
    if row.low is not None and row.high is not None:
        ends = [_short(row.low), _short(row.high)]
        arguments["interval_95"] = ends
        about.append(f"95 % interval {ends[0]:g} to {ends[1]:g}")
    kind, name = row.metric, METRICS[row.metric].label
    if row.metric == "fid" and (protocol is None or protocol.label != "FID"):
        kind, name = "fd", protocol.label if protocol else "FD"
    return {
        "type": kind,
        "name": f"{name} ({', '.join(about)})" if about else name,
        "value": _short(row.value),
        "args": arguments,
    }


def _protocol(row: Row) -> Protocol | None:
    """The protocol of a score; None for one of another version."""
    try:
        return Protocol.parse(row.protocol)
    except ValueError:
        return None


def _measured(metric: str, protocol: Protocol) -> tuple[dict[str, object], list[str]]:
    """How a score was measured, by key, and the main parts in words."""
    found: dict[str, object] = {"samples": protocol.samples, "sampler": protocol.sampler}
    words = [f"{protocol.samples} samples"]
    if metric in _OF_SUBSETS and protocol.count:
        found["count"] = protocol.count
        words = [f"{protocol.count} of {protocol.samples} samples at a time"]
    if metric == "fd_infinity":
        words = [f"extrapolated from {protocol.samples} samples"]
    if metric not in _TO_TEACHER:
        found["features"] = protocol.features
        found["reference"] = f"{protocol.reference} ({protocol.reference_n} images)"
        words.insert(0, f"{protocol.features} features")
    return found, words


def _short(value: float) -> float:
    return float(f"{value:.4g}")
