import pytest
import torch

import unitscale as us
from unitscale.adapt.source import Source


def test_statistics_are_those_of_the_class_token_after_each_block(vit, source_images):
    model = vit()
    source = us.adapt.measure_source(model, source_images)
    with torch.no_grad():
        states = model(source_images, output_hidden_states=True).hidden_states
        last = model.vit(source_images).last_hidden_state
    first = states[1][:, 0]
    torch.testing.assert_close(source.mean[0], first.mean(0))
    torch.testing.assert_close(source.deviation[0], first.std(0))
    torch.testing.assert_close(source.mean[1], last[:, 0].mean(0))
    assert source.spread == pytest.approx(float(states[0].std()), rel=1e-6)
    assert (source.images, source.size) == (32, (1, 8, 8))


def test_batches_of_any_size_with_labels_give_the_same(vit, source_images):
    model = vit()
    whole = us.adapt.measure_source(model, source_images)
    parts = [(batch, torch.zeros(len(batch))) for batch in source_images.split([1, 20, 11])]
    found = us.adapt.measure_source(model, iter(parts))
    torch.testing.assert_close(found.mean, whole.mean)
    torch.testing.assert_close(found.deviation, whole.deviation)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: [], ValueError, "the source has no batch"),
        (lambda x: x[:1], ValueError, "1 image has no deviation"),
        (lambda x: x[:0], ValueError, "the batch is empty"),
        (lambda x: [x, x[..., :4]], ValueError, r"size \(1, 8, 4\)"),
        (lambda x: x * torch.inf, ValueError, "32 of 32 images"),
        (lambda x: [3], TypeError, "the batch is int"),
        (lambda x: None, TypeError, "the source is NoneType; expected a batch"),
    ],
)
def test_bad_source_images(vit, source_images, make, error, message):
    with pytest.raises(error, match=message):
        us.adapt.measure_source(vit(), make(source_images))


def test_statistics_of_another_model_or_without_sense_are_refused(vit, source_images):
    source = us.adapt.measure_source(vit(), source_images)
    assert us.adapt.FOA(vit(), source.state_dict(), n_prompts=0).source == source
    with pytest.raises(ValueError, match=r"of \(2, 16\) blocks .* this model has \(3, 16\)"):
        us.adapt.FOA(vit(num_hidden_layers=3), source, n_prompts=0)
    state = source.state_dict()
    with pytest.raises(ValueError, match="hold NaN"):
        Source(**{**state, "mean": source.mean * torch.nan})
    with pytest.raises(ValueError, match="expected one shape"):
        Source(**{**state, "mean": source.mean[0]})


def test_a_mapping_that_is_no_state_is_refused(vit, source_images):
    with pytest.raises(TypeError, match="the source is a mapping of pixel_values"):
        us.adapt.FOA(vit(), {"pixel_values": source_images})
