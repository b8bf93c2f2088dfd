"""Where a graph records gradients, and that its results are recorded at its end."""

from collections.abc import Sequence

import pytest
import torch
from torch import fx

from unitscale.graph.recording import record_results, records_anywhere


def graph_of(*modes: bool) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for mode in modes:
        graph.call_function(torch._C._set_grad_enabled, (mode,))
        x = graph.call_function(torch.sin, (x,))
    graph.output(x)
    return graph


@pytest.mark.parametrize(
    ("modes", "at_start", "want"),
    [((), True, True), ((), False, False), ((True, False), False, True), ((False,), False, False)],
)
def test_recording_in_some_part(modes: Sequence[bool], at_start, want):
    assert records_anywhere(graph_of(*modes), at_start=at_start) is want


@pytest.mark.parametrize("modes", [(), (True,), (False, True)])
def test_a_graph_that_ends_as_it_records_is_left_alone(modes):
    graph = graph_of(*modes)
    before = len(graph.nodes)
    assert record_results(graph) is None
    assert len(graph.nodes) == before


def test_a_graph_that_ends_without_recording_records_at_its_very_end():
    graph = graph_of(True, False)
    assert record_results(graph) is False
    *_, last, output = graph.nodes
    assert (last.target, last.args) == (torch._C._set_grad_enabled, (True,))
    assert output.op == "output"
