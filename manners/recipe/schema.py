"""`manners schema`: the JSON schema of a recipe, with which an editor completes and checks one while it is written."""

import json
from typing import Any, ClassVar

from manners.commands import COMMANDS
from manners.core.config import Settings
from manners.core.files import write_json
from manners.recipe.read import NAME, Recipe, stage_commands, stage_settings
from manners.recipe.stages import REFERENCE_PATTERN


class SchemaSettings(Settings):
    """Settings of `manners schema`."""

    positional: ClassVar[str] = "out"

    out: str | None = None
    """File to write; without one the schema is printed."""


def schema(settings: SchemaSettings) -> dict[str, Any]:
    """Print or write the JSON schema of a recipe, made from the settings of every command that a stage can be; returns it."""
    content = recipe_schema()
    if settings.out is None:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        write_json(settings.out, content)
    return content


def recipe_schema() -> dict[str, Any]:
    """The schema, draft 2020-12. Which settings a stage has follows from its `do`; any of them may be text with a reference in it."""
    content = Recipe.model_json_schema()
    commands = stage_commands()
    content["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    content["title"] = "Manners recipe"
    content["required"] = ["stages"]  # name and out follow from the name of the file
    number_or_text = {"anyOf": [content["properties"]["seeds"], {"type": "integer", "minimum": 0}, {"type": "string"}]}
    content["properties"]["seeds"] = {**number_or_text, "description": content["properties"]["seeds"].pop("description", "")}
    chosen = {"enum": commands, "description": "The command that the stage is."}
    definitions = {}
    for do in commands:
        kind = stage_settings(do)
        made = kind.model_json_schema(ref_template=f"#/$defs/{do} {{model}}")
        definitions |= {f"{do} {name}": inner for name, inner in made.pop("$defs", {}).items()}
        fields = {key: _or_reference(field) for key, field in made["properties"].items() if key != "out"}
        own = {
            "do": {"const": do, "description": COMMANDS[do].summary},
            "once": {"type": "boolean", "description": "One stage over all seeds; references to other stages become lists."},
            "after": {"type": ["string", "array"], "items": {"type": "string"}, "description": "Stages to wait for without reading them."},
        }
        needed = ["do", *(key for key in made.get("required", []) if key != "out")]
        definitions[do] = {
            "type": "object",
            "description": COMMANDS[do].summary,
            "properties": {**own, **fields},
            "required": needed,
            "additionalProperties": False,
        }
    # if/then rather than one of many: an editor then tells what is wrong with this command, not that no command fits
    cases = [{"if": {"properties": {"do": {"const": do}}}, "then": {"$ref": f"#/$defs/{do}"}} for do in commands]
    stage = {"type": "object", "properties": {"do": chosen}, "required": ["do"], "allOf": cases}
    named = {"propertyNames": {"pattern": f"^{NAME.pattern}$"}, "additionalProperties": stage}
    content["properties"]["stages"] = {**content["properties"]["stages"], **named}
    content["$defs"] = {**content.get("$defs", {}), **definitions}
    return content


def _or_reference(field: dict[str, Any]) -> dict[str, Any]:
    """A setting's schema that also takes text with a reference."""
    inner = {key: value for key, value in field.items() if key not in ("description", "default", "title")}
    outer = {key: value for key, value in field.items() if key in ("description", "default")}
    return field if inner == {"type": "string"} else {"anyOf": [inner, {"type": "string", "pattern": REFERENCE_PATTERN}], **outer}
