"""The settings tables of docs/mixtures.md and docs/cleaning.md have every key with its default."""

import pytest

from manners.data.card import CardSettings
from manners.data.clean import CleanSettings
from manners.data.convert import ConvertSettings
from manners.data.mixture import MixSettings
from manners.data.render import RenderSettings
from manners.data.select import SelectSettings
from manners.data.splits import SplitSettings
from tests.markdown import DOCS, table
from tests.test_docs import is_default


@pytest.mark.parametrize(
    "page, name, kind",
    [
        ("mixtures", "mix", MixSettings),
        ("mixtures", "split", SplitSettings),
        ("cleaning", "clean", CleanSettings),
        ("cleaning", "select", SelectSettings),
        ("cleaning", "card", CardSettings),
        ("data-formats", "convert", ConvertSettings),
        ("data", "render", RenderSettings),
    ],
)
def test_the_settings_tables(page, name, kind):
    rows = table((DOCS / f"{page}.md").read_text(encoding="utf-8"), f"Setting of {name}")
    assert rows.keys() == kind.model_fields.keys()
    for key, field in kind.model_fields.items():
        shown = rows[key][0].strip("`")
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        assert shown == "needed" if field.is_required() else is_default(shown, default), key
