# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Wordings of questions about a phone and of requests to it.

A wording has places for what is asked about: {x} a thing, {n} a number, {d} a difference, {t} a time. Those of the
test are never seen in training.
"""

from typing import NamedTuple


class Wordings(NamedTuple):
    """What is said in training, and in the test."""

    train: tuple[str, ...]
    test: tuple[str, ...]


# task -> how it is said
QUESTIONS: dict[str, Wordings] = {
    "value": Wordings(
        ("What is the {x}?", "How high is the {x}?", "Tell me the {x}.", "Give me the {x}.", "{x}?", "Read the {x}.",
         "Show the {x}.", "I want to know the {x}.", "What does the {x} read?", "Could you give me the {x}?",
         "Do you know my {x}?", "What is my {x} now?", "Could you tell me my {x}?", "Could you read the {x}?",
         "I want you to tell me my {x}.", "Show me the {x}.", "What {x} do I have?"),
        ("Could you tell me the {x}?", "Show me my {x} now.", "I want you to read the {x}."),
    ),
    "is_on": Wordings(
        ("Is the {x} on?", "Is {x} on?", "Is {x} on now?", "Tell me if the {x} is on.", "Do I have {x}?",
         "Is my {x} on?", "Could you tell me if {x} is on?", "I want to know if my {x} is on."),
        ("Do you know if the {x} is on?", "Tell me if my {x} is on now.", "Do I have {x} on?"),
    ),
    "is_charging": Wordings(
        ("Is the phone charging?", "Is it charging?", "Tell me if it is charging.", "Is it charging now?",
         "Do you know if it is charging?", "Could you tell me if it is charging?", "Tell me if my phone is charging."),
        ("Is my phone charging now?", "Could you tell me if the phone is charging?"),
    ),
    "is_low": Wordings(
        ("Is the battery low?", "Is the battery low now?", "Tell me if the battery is low.", "Is the charge low?",
         "Do you know if my battery is low?"),
        ("Is my battery low?", "Could you tell me if my battery is low?"),
    ),
    "app": Wordings(
        ("Which app is open?", "What app is open?", "Tell me which app is open.", "Name the open app.",
         "Could you tell me what app is open?",
         "Which app do I see?"),
        ("Could you name the open app?", "Could you tell me which app I have open?"),
    ),
    "alarm": Wordings(
        ("When is the alarm?", "When does the alarm ring?", "What time is the alarm set to?", "When do I wake up?",
         "Tell me the time of the alarm.", "What alarm do I have?"),
        ("When does my alarm ring?", "Could you tell me the time of my alarm?"),
    ),
    "song": Wordings(
        ("Which song is playing?", "What song is on?", "Name the song.", "Tell me the song.", "What do I hear?",
         "Which song do I have on?"),
        ("Which song is on now?", "Could you name the song I hear?"),
    ),
}  # fmt: skip

REQUESTS: dict[str, Wordings] = {
    "set_level": Wordings(
        ("Set the {x} to {n}.", "Set {x} to {n} %.", "Change the {x} to {n}.", "Make the {x} {n}.",
         "Put the {x} at {n}.", "{x} {n}", "I want the {x} at {n}.", "Could you change the {x} to {n}?",
         "I want you to put {x} at {n} %.", "Could you put the {x} at {n} %?", "Could you make {x} {n} %?",
         "Set my {x} to {n}.", "I want you to set the {x} to {n} %."),
        ("Could you set the {x} to {n} %?", "Change my {x} to {n} now.", "I want you to make the {x} {n}."),
    ),
    "raise": Wordings(
        ("Raise the {x} by {d}.", "{x} up by {d}", "Turn the {x} up by {d}.", "Increase the {x} by {d}.",
         "Could you increase {x} by {d}?", "I want the {x} up by {d}.", "Could you raise the {x} by {d}?",
         "I want you to increase my {x} by {d}."),
        ("Could you turn the {x} up by {d}?", "Raise my {x} by {d} now.", "I want you to raise the {x} by {d}."),
    ),
    "lower": Wordings(
        ("Lower the {x} by {d}.", "{x} down by {d}", "Turn the {x} down by {d}.", "Decrease the {x} by {d}.",
         "Could you decrease {x} by {d}?", "I want the {x} down by {d}.", "Could you lower the {x} by {d}?",
         "I want you to decrease my {x} by {d}."),
        ("Could you turn the {x} down by {d}?", "Lower my {x} by {d} now.", "I want you to lower the {x} by {d}."),
    ),
    "on": Wordings(
        ("Turn {x} on.", "Switch the {x} on.", "Turn on the {x}.", "Switch on {x}.", "{x} on", "Enable {x}.",
         "I want {x} on.", "Could you enable the {x}?", "I want you to switch my {x} on.", "Could you switch {x} on?",
         "Could you turn on my {x}?", "I want you to turn my {x} on."),
        ("Could you turn the {x} on?", "Switch my {x} on now.", "I want you to turn on {x}."),
    ),
    "off": Wordings(
        ("Turn {x} off.", "Switch the {x} off.", "Turn off the {x}.", "Switch off {x}.", "{x} off", "Disable {x}.",
         "I want {x} off.", "Could you disable the {x}?", "I want you to switch my {x} off.",
         "Could you switch {x} off?", "Could you turn off my {x}?", "I want you to turn my {x} off."),
        ("Could you turn the {x} off?", "Switch my {x} off now.", "I want you to turn off {x}."),
    ),
    "toggle": Wordings(
        ("Toggle {x}.", "Toggle the {x}.", "Flip {x}.", "Flip the {x}.", "I want you to toggle {x}.",
         "Could you flip the {x}?"),
        ("Could you toggle the {x}?", "Flip my {x} now."),
    ),
    "ringer": Wordings(
        ("Set the phone to {x}.", "Set the ringer to {x}.", "Ringer {x}", "Put the phone on {x}.",
         "Change the ringer to {x}.", "I want the ringer on {x}.", "Could you put the ringer on {x}?"),
        ("Could you set my phone to {x}?", "I want you to change the ringer to {x}.", "Put my phone on {x} now."),
    ),
    "open": Wordings(
        ("Open {x}.", "Start {x}.", "Open the {x} app.", "Launch {x}.", "Start the {x} app.", "I want to see {x}.",
         "Could you start {x}?", "I want you to launch the {x} app."),
        ("Could you open the {x} app?", "I want you to start {x}.", "Launch the {x} app now."),
    ),
    "close": Wordings(
        ("Close the app.", "Close it.", "Close the open app.", "Leave the app.", "Could you close it?",
         "I want you to leave the app."),
        ("Could you close the app?", "I want you to close the open app now."),
    ),
    "set_alarm": Wordings(
        ("Set the alarm to {t}.", "Wake me at {t}.", "Alarm at {t}", "Set an alarm for {t}.",
         "I want the alarm at {t}.",
         "Could you set the alarm for {t}?", "I want to wake up at {t}."),
        ("Could you wake me at {t}?", "I want you to set an alarm for {t}.", "Change my alarm to {t}."),
    ),
    "cancel_alarm": Wordings(
        ("Cancel the alarm.", "Delete the alarm.", "Turn the alarm off.", "Turn off the alarm.", "I want no alarm.",
         "Could you delete the alarm?"),
        ("Could you cancel my alarm?", "I want you to delete my alarm now."),
    ),
    "impossible": Wordings(
        ("{x}.", "I want you to {x}.", "Could you {x}?"),
        ("Could you please {x}?", "I want the phone to {x}."),
    ),
}  # fmt: skip

# name -> what it is called
NAMES: dict[str, tuple[str, ...]] = {
    "battery": ("battery", "battery level", "charge"),
    "signal": ("signal", "signal strength", "reception"),
    "brightness": ("brightness", "screen brightness", "display brightness", "backlight"),
    "volume": ("volume", "sound volume", "loudness"),
    "temperature": ("temperature", "temperature outside"),
    "ringer": ("ringer", "ringer mode"),
    "highest": ("highest pulse", "maximum of the pulse"),
    "lowest": ("lowest pulse", "minimum of the pulse"),
    "mean": ("mean pulse", "average pulse"),
    "last": ("last pulse", "pulse"),
    "wifi": ("wifi", "wireless"),
    "bluetooth": ("bluetooth",),
    "airplane": ("airplane mode", "flight mode"),
    # What this phone does not know of.
    "unknown": ("humidity", "speed", "altitude", "weight", "price", "air pressure", "weather", "distance"),
}  # fmt: skip

OPENINGS = ("Please", "Hey phone,", "Well,", "Now", "Hello,")
CLOSINGS = ("please", "thanks", "now", "please do")
# Some verbs are those of commands: "Open the door." is not "Open the maps app."
VERBS = (
    "order", "call", "print", "boil", "wash", "sell", "paint", "cook", "buy", "clean", "open", "start", "close",
    "turn on", "switch off", "toggle", "raise", "lower", "set",
)  # fmt: skip
OBJECTS = (
    "a pizza", "a taxi", "the page", "some water", "the car", "the door", "a letter", "my shirt", "an egg", "the lamp",
    "the oven", "the window",
)  # fmt: skip
TITLES = (
    ("blue", "red", "wild", "slow", "silver", "lonely", "golden", "broken", "quiet", "little", "summer", "paper"),
    ("river", "moon", "heart", "road", "rain", "garden", "train", "star", "bird", "house", "fire", "ocean"),
)
CANNOT_DO = "I cannot do that"
# Numbers as they are said; and what is asked about a recording that is to be written down.
TEENS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WHAT_IS_SAID = "What is said?"
