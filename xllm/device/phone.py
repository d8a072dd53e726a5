# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A simulated phone: what its status may be, what it can be told, and what it does then.

`python -m xllm.device.phone` prints it as `xllm init --modality status=FILE` takes it.
"""

import copy
import json
import sys
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from xllm.device.commands import DeviceCommands, Refused


APPS = ("home", "maps", "camera", "music", "mail", "browser", "clock")
RINGERS = ("silent", "vibrate", "normal")
RADIOS = ("wifi", "bluetooth")
LEVELS = ("brightness", "volume")
NAME = "command"  # the member of a command that says which it is


def _whole(low: int, high: int, unit: str = "") -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, **({"x-unit": unit} if unit else {})}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    needed = list(properties)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


FLAG = {"type": "boolean"}
TIME = {"hour": _whole(0, 23, "h"), "minute": {"type": "integer", "enum": [0, 15, 30, 45], "x-unit": "min"}}
REQUIRED = ("battery", "charging", "airplane", *RADIOS, "signal", *LEVELS, "ringer", "app")
STATUS = _object(
    battery=_whole(0, 100, "%"),
    charging=FLAG,
    airplane=FLAG,
    wifi=FLAG,
    bluetooth=FLAG,
    signal=_whole(0, 4, "bars"),
    brightness=_whole(0, 100, "%"),
    volume=_whole(0, 100, "%"),
    ringer={"enum": list(RINGERS)},
    app={"enum": list(APPS)},
    alarm=_object(**TIME),
    temperature={"type": "number", "minimum": -10, "maximum": 50, "x-unit": "°C"},
    song={"type": "string", "maxLength": 40},
    pulse={"type": "array", "items": {**_whole(40, 160, "bpm")}, "minItems": 2, "maxItems": 600},
) | {"required": list(REQUIRED)}


def _command(name: str, **arguments: dict[str, Any]) -> dict[str, Any]:
    return _object(**{NAME: {"const": name}, **arguments})


COMMANDS = {
    "anyOf": [
        *(_command(f"set_{name}", value=_whole(0, 100)) for name in LEVELS),
        *(_command(f"set_{name}", on=FLAG) for name in (*RADIOS, "airplane")),
        _command("set_ringer", mode={"enum": list(RINGERS)}),
        _command("open_app", app={"enum": list(APPS[1:])}),
        _command("close_app"),
        _command("set_alarm", **{name: {"enum": [*range(24)] if name == "hour" else part["enum"]}
                                 for name, part in TIME.items()}),
        _command("cancel_alarm"),
    ]
}  # fmt: skip
DEVICE = {"status": STATUS, "commands": COMMANDS}


class Phone:
    """A phone in some state.

    Args:
        state (`dict`): by `STATUS`; it is copied.

    Raises:
        ValueError: the state breaks the schema.
    """

    commands = DeviceCommands(COMMANDS)

    def __init__(self, state: dict[str, Any]):
        if error := best_match(Draft202012Validator(STATUS).iter_errors(state)):
            raise ValueError(f"no state of this phone: {error.json_path}: {error.message}")
        self.state = copy.deepcopy(state)

    def execute(self, command: dict[str, Any]) -> dict[str, Any]:
        """The state behind a command, which is that of the phone from then on; a command that is refused changes
        nothing.

        Raises:
            Refused: it breaks the schema, or cannot be done in this state; the message says why.
        """
        given = self.commands.parse(json.dumps(command))
        name = given.pop(NAME)
        verb, what = name.split("_", 1)
        if self.state["battery"] == 0 and not self.state["charging"]:
            raise Refused("the battery is empty")
        if what in RADIOS and given["on"] and self.state["airplane"]:
            raise Refused("airplane mode is on")
        if name == "cancel_alarm" and self.state.get("alarm") is None:
            raise Refused("there is no alarm")
        if name == "close_app" and self.state["app"] == APPS[0]:
            raise Refused("no app is open")
        if what == "alarm":
            self.state.pop("alarm", None)
            self.state |= {"alarm": given} if verb == "set" else {}
        elif name == "close_app":
            self.state["app"] = APPS[0]
        else:
            self.state[what] = next(iter(given.values()))
        if what == "airplane" and given["on"]:  # the radios go off
            self.state |= {"wifi": False, "bluetooth": False, "signal": 0}
        return copy.deepcopy(self.state)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(DEVICE, indent=2, ensure_ascii=False) + "\n")
