import pytest
import torch
import torch.nn.functional as F

import unitscale as us


def test_classes_are_mean_directions_of_their_surest_supports(vit, images):
    """Two batches against the authors' formula, written out over all that was seen."""
    model = vit()
    t3a = us.adapt.T3A(model, supports=2)
    seen, classes, entropies = [], [], []

    def note(features):
        logits = model.classifier(features)
        seen.append(features)
        classes.append(logits.argmax(1))
        entropies.append(-(logits.softmax(1) * logits.log_softmax(1)).sum(1))

    with torch.no_grad():
        note(model.classifier.weight)
        for batch in (images, images.flip(3) - 1):
            answer = t3a(batch)
            note(model.vit(batch).last_hidden_state[:, 0])
    pool, labels, nats = torch.cat(seen), torch.cat(classes), torch.cat(entropies)
    centers = torch.zeros(16, 5)
    for c in range(5):
        mine = (labels == c).nonzero().flatten()
        surest = mine[nats[mine].argsort()[:2]]
        centers[:, c] = F.normalize(F.normalize(pool[surest], dim=1).sum(0), dim=0)
    torch.testing.assert_close(answer, seen[-1] @ centers, rtol=1e-5, atol=1e-5)
    assert max(t3a.classes.bincount()) <= 2


def test_the_model_and_after_a_reset_the_answers_are_as_before(vit, images):
    model = vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    t3a = us.adapt.T3A(model, supports=1)
    first = t3a(images)
    t3a(images + 1)
    t3a.reset()
    assert torch.equal(t3a(images), first)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("make", [lambda x: x[:0], lambda x: x * torch.nan, lambda x: x[..., :4]])
def test_a_bad_batch_changes_nothing(vit, images, make):
    t3a = us.adapt.T3A(vit())
    t3a(images)
    before = t3a.features.clone()
    with pytest.raises(ValueError, match=r"T3A: .*(empty|NaN|size)"):
        t3a(make(images))
    assert torch.equal(t3a.features, before)


def test_bad_options_and_a_model_that_gives_nan(vit, images):
    with pytest.raises(ValueError, match="supports is 0"):
        us.adapt.T3A(vit(), supports=0)
    model = vit()
    t3a = us.adapt.T3A(model)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="gives NaN or infinity"):
        t3a(images)
    assert len(t3a.features) == 5
