"""Forms of operators: which one is used, and that all compute the same."""

import pytest
import torch

from models.ops import forms
from models.ops.forms import FORMS, form_of, recorded_requests, use_forms
from models.ops.measure import prepare
from tests.tools.builders import small


@pytest.fixture(autouse=True)
def defaults():
    yield
    use_forms({})


KEY = "linear 4x6 float32"


def test_the_first_form_is_the_default_and_another_can_be_chosen():
    x = torch.zeros(2, 6)
    assert form_of("linear", (4, 6), x, 2) == "onednn"
    use_forms({KEY: "plain"})
    assert form_of("linear", (4, 6), x, 2) == "plain" and form_of("linear", (4, 8), x, 2) == "onednn"
    assert form_of("linear", (4, 6), x.double(), 2) == "onednn"
    assert form_of("linear", (4, 6), x.to("meta"), 2) == "onednn"  # chosen for the CPU
    use_forms({KEY: "gone", "gone 1": "plain"})  # of another version
    assert form_of("linear", (4, 6), x, 2) == "onednn" and forms._chosen == {}


def test_requests_are_recorded_once_for_each_key():
    with recorded_requests() as requests:
        for rows in (2, 3):
            form_of("linear", (4, 6), torch.zeros(rows, 6), rows)
    form_of("linear", (4, 7), torch.zeros(2, 7), 2)
    assert list(requests) == [KEY] and requests[KEY].rows == 2


def test_compiled_models_use_the_defaults(monkeypatch):
    use_forms({KEY: "plain"})
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert form_of("linear", (4, 6), torch.zeros(2, 6), 2) == "onednn"


@pytest.mark.parametrize("family", ["swin", "swinv2", "swin_moe", "swin_mlp"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_computes_the_same_in_every_form(family, gradients):
    model, images = small(family).eval(), torch.randn(2, 3, 32, 32)

    def results():
        model.zero_grad()
        with torch.set_grad_enabled(gradients):
            out = model(images)
        if gradients:
            out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    with recorded_requests() as requests:
        expected = results()
    assert {request.operator for request in requests.values()} <= FORMS.keys() and requests
    for place in range(max(map(len, FORMS.values()))):
        use_forms({key: FORMS[request.operator][place] for key, request in requests.items()})
        torch.testing.assert_close(results(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("operator", FORMS)
def test_every_form_can_be_measured(operator):
    sizes = (9, 2, 8) if operator == "attention" else (12, 6)
    runs = prepare(forms.Request(operator, sizes, 5, torch.float32, "cpu"))
    assert tuple(runs) == FORMS[operator]
    for run in runs.values():
        run()
