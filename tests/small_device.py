# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The schemas of a small device, and a state of it."""

PERCENT = {"type": "integer", "minimum": 0, "maximum": 100, "x-unit": "%"}
STATUS = {
    "type": "object",
    "required": ["battery", "wifi"],
    "properties": {
        "battery": PERCENT,
        "wifi": {"type": "boolean"},
        "ringer": {"enum": ["silent", "vibrate", "normal"]},
        "temperature": {"type": "number", "minimum": -20, "maximum": 60, "x-unit": "°C"},
        "song": {"type": "string", "maxLength": 40},
        "alarm": {"type": "object", "required": ["hour"], "properties": {"hour": {"type": "integer"}}},
        "pulse": {"type": "array", "items": {"type": "number", "x-unit": "bpm"}},
        "apps": {"type": "array", "items": {"enum": ["maps", "mail"]}},
    },
}
COMMANDS = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"command": {"const": "set_volume"}, "value": PERCENT},
            "required": ["command", "value"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"command": {"const": "set_wifi"}, "on": {"type": "boolean"}},
            "required": ["command", "on"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"command": {"const": "write_note"}, "text": {"type": "string", "maxLength": 12}},
            "required": ["command", "text"],
            "additionalProperties": False,
        },
    ]
}
STATE = {"battery": 37, "wifi": True, "ringer": "silent", "temperature": 21.5, "song": "blue river"}
