# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What one client may ask of a server, and the error it gets for more."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Args:
        body_bytes, body_seconds: of a request's body, media in it included; body_values: of its JSON, told by commas
            (three bytes of JSON may take a hundred of memory).
        bodies: requests whose bodies are held, until their media are decoded; further ones are not read meanwhile.
        download_bytes, download_seconds: of one medium fetched from an address.
        medium_memory: bytes that decoding one medium may take, whatever size its file claims.
        recording_seconds: of a recording for /v1/audio/transcriptions, which is heard in windows.
        items: media of one request.
        choices: answers to one request (`n`).
        schema_bytes: of the JSON Schema of an answer; schema_seconds, schema_memory: of a processor, to read it.
        new_tokens: of an answer for which the request names no number.
        rows: answers that are written at the same time; prefill_tokens: of prompts that are read in one step.
        queue: answers that wait for their turn before requests are refused (429).
        workers: media that are fetched and decoded at the same time.
        request_seconds: until an answer must be complete.
        cache_bytes: of encoded media that are kept for further turns and other clients.
    """

    body_bytes: int = 64 << 20
    body_seconds: float = 60.0
    body_values: int = 1 << 20
    bodies: int = 16
    download_bytes: int = 32 << 20
    download_seconds: float = 20.0
    medium_memory: int = 256 << 20
    recording_seconds: float = 4 * 3600.0
    items: int = 32
    choices: int = 8
    schema_bytes: int = 64 << 10
    schema_seconds: int = 3
    schema_memory: int = 512 << 20
    new_tokens: int = 512
    rows: int = 32
    prefill_tokens: int = 8192
    queue: int = 128
    workers: int = 4
    request_seconds: float = 300.0
    cache_bytes: int = 256 << 20

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}: expected more than 0")


class RequestError(Exception):
    """A request that is not answered: HTTP status, message, the parameter at fault, and OpenAI's code of the error."""

    TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message, self.status, self.param, self.code = " ".join(message.split()), status, param, code

    def body(self) -> dict:
        """As OpenAI's servers say it."""
        kind = self.TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        # What a client wrote may hold half a surrogate pair, which no JSON can be sent with.
        message = self.message.encode("utf-8", "backslashreplace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def context_length(config) -> int | None:
    """The most tokens that the language model of a config reads and writes together, or `None` if it says nothing."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    return next((value for name in names if isinstance(value := getattr(text, name, None), int) and value > 0), None)
