import json
from dataclasses import asdict, dataclass

import pool


@dataclass(frozen=True)
class Point:
    lr: float
    seed: int


def refuse(point):
    raise AssertionError(f"{point} was run again")


def test_finished_runs_are_read_from_the_cache_and_not_run_again(tmp_path):
    cache = tmp_path / "runs.jsonl"
    results = {Point(0.5, 0): {"loss": 2.5}, Point(0.5, 1): {"loss": None}}
    lines = [json.dumps({"point": asdict(p), "result": r}) for p, r in results.items()]
    cache.write_text("\n".join(lines) + "\n")
    assert pool.run_all(results, refuse, cache, workers=1) == results
    assert cache.read_text().splitlines() == lines
