"""The field reference in experiments/README.md."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from focus_lab.specs import data, experiment, model, training
from focus_lab.specs.base import Spec
from focus_lab.specs.reference import BEGIN, END, field_reference

README = Path(__file__).parents[3] / "experiments" / "README.md"
MODELS = sorted(
    {
        found
        for module in (model, data, training, experiment)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, BaseModel) and found is not Spec
    },
    key=lambda found: found.__name__,
)


def test_the_readme_has_the_current_field_reference() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == field_reference().strip(), (
        "run `make reference`"
    )


@pytest.mark.parametrize("found", MODELS, ids=lambda found: found.__name__)
def test_every_field_says_what_it_means(found: type[BaseModel]) -> None:
    silent = [
        name
        for name, field in found.model_fields.items()
        if name != "kind" and not field.description
    ]
    assert not silent
