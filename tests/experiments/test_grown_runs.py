import json

import grown_runs
from unitscale.models.language import llama


def test_equal_compute_counts_the_parameters_that_multiply():
    for shape in (grown_runs.SMALL, grown_runs.LARGE):
        model = llama(**shape)
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2]
        table = model.get_input_embeddings().weight
        assert grown_runs.multiplied(shape) == sum(p.numel() for p in matrices) - table.numel()
    small, large = (grown_runs.multiplied(s) for s in (grown_runs.SMALL, grown_runs.LARGE))
    spent = grown_runs.FIRST * small + grown_runs.THEN * large
    assert abs(grown_runs.SCRATCH * large - spent) <= large / 2
    assert abs(grown_runs.CONTINUED * small - spent) <= small / 2


def test_table_has_what_is_done(tmp_path, monkeypatch):
    for seed, valid in ((0, 1.5), (1, 1.7)):
        folder = tmp_path / f"fp8-{seed}" / "scratch"
        folder.mkdir(parents=True)
        (folder / "log.jsonl").touch()
        (folder / "result.json").write_text(json.dumps({"valid_loss": valid}))
    monkeypatch.setattr(grown_runs, "read_log", lambda path: [{"step": 1, "loss": 5.0}])
    line = next(one for one in grown_runs.table(tmp_path).splitlines() if "from scratch" in one)
    assert "| – | – | 5.000 ± 0.000 | 1.600 ± 0.141 | 0 and 2 |" in line
