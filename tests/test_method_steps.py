"""A step of a method costs as much as the calls that it consists of."""


def test_a_step_costs_what_its_calls_cost(benchmarks):
    import method_steps

    row = method_steps.make_row("MeanFlow, distilled")
    assert 1.0 <= row.step.flops / row.flops() < 1.15
    assert row.parts["T"].flops < row.parts["J"].flops
    name, batch, calls, _, ratio = row.cells()
    assert (name, batch, calls, ratio) == (row.name, "64", "1 T, 1 J", "1.00")
