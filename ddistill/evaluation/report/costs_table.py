"""The table of costs in the report of a run."""

from collections.abc import Sequence

from ddistill.evaluation.figures.tables import Table
from ddistill.evaluation.records.sampler_runs import REFERENCE_TEACHER
from ddistill.evaluation.scored import ScoredRun
from ddistill.planning.plan import StagePlan, complete_manifest


def costs_table(plans: Sequence[StagePlan], scored: Sequence[ScoredRun]) -> Table:
    """What each stage has cost, and what its samples cost."""
    sampled: dict[str, list[ScoredRun]] = {}
    for s in scored:
        sampled.setdefault(s.run.plan.name, []).append(s)
    columns = [
        "stage",
        "students",
        "parameters each",
        "updates",
        "batch",
        "teacher calls",
        "seconds",
        "compile s",
        "ms/image",
    ]
    rows = []
    for plan in plans:
        m = complete_manifest(plan)
        speed = ", ".join(
            f"{s.samples.ms_per_image:.2f} (NFE {s.run.nfe})"
            for s in sampled.get(plan.name, [])
            if s.run.role in (REFERENCE_TEACHER, "student")
        )
        rows.append(
            [
                plan.name,
                str(m.students),
                f"{m.parameters:,}",
                f"{m.updates:,}",
                str(m.batch_size),
                f"{m.teacher_calls:,}" if m.teacher_calls else "",
                f"{m.train_seconds:.0f}",
                f"{m.compile_seconds:.0f}",
                speed,
            ]
        )
    return Table(
        columns,
        rows,
        title="Cost",
        caption="Each row is the cost of one stage; a student that starts from the weights of "
        "another stage also needs the cost of that stage. Updates and batch are per student; "
        "an objective can make several updates of a student in a train step, or one in several. "
        "Teacher calls are forward passes of one image during distillation. Milliseconds per image "
        "are measured on the fastest batch, without compilation.",
    )
