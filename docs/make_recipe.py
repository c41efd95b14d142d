"""Write docs/recipe.md from the recipe's own fields: `python docs/make_recipe.py`.

A test compares what this returns with the file, so the page cannot fall behind the code.
"""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from tlx.recipe import Recipe
from tlx.recipe_fields import FIELD_GROUPS

PAGE = Path(__file__).with_name("recipe.md")

HEAD = """\
# Recipe

<!-- Written by docs/make_recipe.py from the fields of tlx.Recipe. Do not edit. -->

A recipe is one frozen value that holds everything a result depends on. Each field has the same name everywhere:
`image_size=32` for `tlx.run` and `tlx.Recipe`, `image_size = 32` in a recipe file, `--image-size 32` for `tlx run`.

```python
import tlx

recipe = tlx.Recipe(strategy="partial", stages=("layer3", "layer4"), image_size=96)
print(recipe)
```

<!-- output -->
```text
Recipe(strategy='partial', stages=('layer3', 'layer4'), image_size=96)
```

A default of *none* means the strategy's customary value, or what the description says. The last column says what a
field affects: the *result*; the *speed* alone; or the *place*: where, and in which arithmetic, the run computes and
keeps its files. Fields of speed and place, all but `out`, can be changed when a run is resumed. A value out of range,
or one that contradicts another, is an error before anything trains. A recipe file is UTF-8 text of at most 1 MB; it
names data, weights and a folder, and no code: no field of it imports or executes anything.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for group in FIELD_GROUPS:
        parts.append(f"\n## {group}\n\n| field | default | description | affects |\n|---|---|---|---|\n")
        parts += [row(f) for f in fields(Recipe) if f.metadata["group"] == group]
    return "".join(parts)


def row(f: Field[Any]) -> str:
    """Return the line of one field."""
    default = "*none*" if f.default is None else f"`{f.default}`"
    choices = f" ({', '.join(f'`{choice}`' for choice in f.metadata['choices'])})" if f.metadata["choices"] else ""
    return f"| `{f.name}` | {default} | {f.metadata['help']}{choices} | {f.metadata['affects']} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
