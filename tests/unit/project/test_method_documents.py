"""`docs/methods.md` and `docs/adding_a_method.md` are what methods' and losses' own files say.

`UPDATE_SNAPSHOTS=1 pytest tests/unit/project/test_method_documents.py` writes both anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainables.losses import LOSSES, Loss
from trainables.methods import METHODS, Method
from tune.config.sweep_file import load_sweep

PROJECT = Path(__file__).parents[3]
METHODS_PAGE = PROJECT / "docs/methods.md"
EXAMPLE_PAGE = PROJECT / "docs/adding_a_method.md"
EXAMPLE = PROJECT / "trainables/methods/vera.py"
COLUMNS = (
    "`method`",
    "name",
    "capacity",
    "axes",
    "packed",
    "merged",
    "strength",
    "4 bits",
    "vLLM",
    "source",
)

LOSS_COLUMNS = ("`loss`", "name", "axes, default", "needs the base", "is", "source")


def row(method: type[Method]) -> list[str]:
    """What a method says of itself."""
    example = method.example()
    return [
        f"`{method.name}`",
        method.title,
        capacity(method),
        ", ".join(f"`{axis}`" for axis in axes(method)),
        yes(not isinstance(example.packed, str)),
        yes(method.merges),
        strength(example),
        yes(method.takes_4bit),
        yes(method.served_by_vllm),
        linked(method.source),
    ]


def loss_row(loss: type[Loss]) -> list[str]:
    """What a loss says of itself."""
    return [
        f"`{loss.name}`",
        loss.title,
        ", ".join(f"`{field}` {info.default}" for field, info in loss.model_fields.items()),
        yes(loss.reads_base or loss.reads_base_weights),
        str(loss.__doc__).partition("\n")[0].rstrip(".").replace("|", r"\|"),
        linked(loss.source),
    ]


def capacity(method: type[Method]) -> str:
    """The field, and whether fewer parameters are trained as it rises."""
    if method.capacity_field is None:
        return ""
    return f"`{method.capacity_field}`" + (" (falling)" if method.capacity_falls else "")


def strength(example: Method) -> str:
    """How the model goes from the base to what it learned."""
    if example.why_not_scaled:
        return ""
    return "share of dW" if example.scales_linearly else "path"


def axes(method: type[Method]) -> list[str]:
    """What is searched beside the capacity and what all methods have."""
    ratios = {ratio.field: ratio.axis for ratio in method.ratios}
    usual = {method.capacity_field, "target_modules"}
    return [ratios.get(field, field) for field in method.model_fields if field not in usual]


def yes(is_so: bool) -> str:
    return "yes" if is_so else ""


def linked(source: str) -> str:
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", source)


def replaced(text: str, name: str, content: str) -> str:
    """The text with what stands between the marks `<!-- name -->` and `<!-- end -->` replaced."""
    mark = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    assert re.search(mark, text, re.DOTALL)
    return re.sub(mark, lambda found: found[1] + content + found[2], text, flags=re.DOTALL)


def assert_current(page: Path, name: str, content: str) -> None:
    expected = replaced(page.read_text("utf-8"), name, content)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        page.write_text(expected, "utf-8")
    assert page.read_text("utf-8") == expected


def test_the_table_has_every_method_as_it_is() -> None:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row(method) for method in METHODS)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    assert_current(METHODS_PAGE, "table", table)


def test_the_table_has_every_loss_as_it_is() -> None:
    lines = [LOSS_COLUMNS, ["---"] * len(LOSS_COLUMNS), *(loss_row(loss) for loss in LOSSES)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    assert_current(METHODS_PAGE, "losses", table)


def test_the_sweep_of_the_field_has_every_method_and_every_loss() -> None:
    search = load_sweep("field", []).search
    spaces = {recipe: search.space(recipe) for recipe in search.recipes}
    assert {space.method for space in spaces.values()} == {method.name for method in METHODS}
    assert {loss for space in spaces.values() for loss in space.losses} == {
        loss.name for loss in LOSSES
    }
    _, _, rest = METHODS_PAGE.read_text("utf-8").partition("<!-- field -->\n")
    rows = rest.partition("<!-- end -->")[0].replace("\\", "").splitlines()[2:]
    assert sorted(row.removeprefix("| ").partition(" |")[0] for row in rows) == sorted(
        METHODS.find(space.method).title if recipe == space.method else recipe
        for recipe, space in spaces.items()
    )


def test_the_example_is_the_file_as_it_is() -> None:
    assert_current(EXAMPLE_PAGE, "file", f"```python\n{EXAMPLE.read_text('utf-8')}```\n")
