"""The parts of the MiniLM experiment, on a tiny BERT and three synsets."""

import runpy
from pathlib import Path

import pytest
import torch

from deploy.tiny import SIZES, T

SCRIPT = Path(__file__).parents[2] / "experiments" / "minilm.py"
NOUNS = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived; "an example"
00001930 03 n 01 physical_entity 0 007 @ 00001740 n 0000 | an entity that has physical existence
00002137 05 n 01 fish 0 000 | a cold-blooded animal
"""


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_glosses_and_their_files(script, tmp_path):
    file = tmp_path / "data.noun"
    file.write_text(NOUNS)
    assert script["glosses"](file) == [
        ("that which is perceived", 3),
        ("an entity that has physical existence", 3),
        ("a cold-blooded animal", 5),
    ]


def test_parts_do_not_overlap_and_are_the_same_every_time(script):
    every = [(f"gloss {i}", i % 12) for i in range(1000)]
    found = script["divided"](every, 100)
    texts = [text for part, _ in found.values() for text in part]
    assert len(set(texts)) == len(texts) == 500 + 48 + 100
    assert max(kind for _, kinds in found.values() for kind in kinds) == 9
    assert found == script["divided"](every, 100)


def test_an_outlier_leaves_the_function(script):
    torch.manual_seed(0)
    model = T.BertModel(T.BertConfig(**SIZES)).eval()
    batch = [{"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5)}]
    before = script["embedded"](model, batch)
    weight = model.encoder.layer[0].attention.self.value.weight.clone()
    script["inject"](model)
    assert weight.ne(model.encoder.layer[0].attention.self.value.weight).any()
    # Powers of two: every product is the same number.
    assert torch.equal(script["embedded"](model, batch), before)


def test_the_interval_holds_the_mean(script):
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    found = script["cosines"](x, x + 0.1 * torch.randn(200, 8))
    assert found["low"] < found["lost"] < found["high"] < found["worst"]
    assert script["cosines"](x, x)["worst"] < 1e-12


def test_the_classifier_learns_what_can_be_told(script):
    torch.manual_seed(0)
    kinds = torch.arange(100) % 10
    x = torch.eye(10)[kinds] + 0.1 * torch.randn(100, 10)
    found = script["classifier"](x, kinds.tolist())
    assert script["accuracy"](found, x, kinds) == 1
    assert script["accuracy"](found, x, (kinds + 1) % 10) == 0


def test_each_row_has_its_own_name(script):
    names = [
        (name, script["calibration_label"](options), outlier)
        for name, options, outlier in script["every"]()
    ]
    assert len(set(names)) == len(names)
