# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm serve` under load: requests per second of many clients over those of one, the first token of a short request
beside long ones, answers that differ from those of an idle server, and the server's memory over thousands of requests.

    python benchmarks/serving.py [MODEL] [--requests 1000] [--memory-requests 5000]

The server is a process of its own, as the command starts it; without MODEL over a tiny one. Clients are threads here.
"""

import argparse
import base64
import http.client
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from PIL import Image


WORDS = [
    "What",
    "is",
    "said",
    "here",
    "and",
    "which",
    "digit",
    "do",
    "you",
    "see",
    "in",
    "this",
    "picture",
    "of",
    "mine",
]


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int, model: str):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._model = model

    def ask(self, content, max_tokens: int = 16) -> tuple[str, float]:
        """The answer as it is streamed, and seconds to its first text."""
        body = {"model": self._model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
        begun, first, text = time.perf_counter(), None, ""
        payload = json.dumps({**body, "temperature": 0, "stream": True})
        self._connection.request("POST", "/v1/chat/completions", payload)
        reply = self._connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {reply.read()[:300]!r}")
        for line in iter(reply.readline, b"data: [DONE]\n"):
            if line.startswith(b"data: "):
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if piece:
                    first = first or time.perf_counter() - begun
                    text += piece
        reply.read()
        return text, first or time.perf_counter() - begun

    def answer(self, content, max_tokens: int = 16) -> str:
        """The answer as a whole."""
        body = {"model": self._model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
        self._connection.request("POST", "/v1/chat/completions", json.dumps({**body, "temperature": 0}))
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {content[:300]!r}")
        return json.loads(content)["choices"][0]["message"]["content"]


def questions(number: int, seed: int = 0) -> list:
    """Texts of several lengths, and every third one with a picture."""
    chance, found = random.Random(seed), []
    for place in range(number):
        text = " ".join(chance.choices(WORDS, k=chance.randint(2, 40)))
        if place % 3:
            found.append(text)
            continue
        file = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(chance.randbytes(3))).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        found.append([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}])
    return found


def together(port: int, model: str, asked: list, clients: int) -> tuple[list[str], float]:
    """Answers to all questions, asked by several clients at once, and requests per second."""
    answers, places = [""] * len(asked), iter(range(len(asked)))
    lock, errors = threading.Lock(), []

    def work() -> None:
        client = Client(port, model)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                answers[place] = client.answer(asked[place])
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers, len(asked) / (time.perf_counter() - begun)


def first_tokens(port: int, model: str, others: int, repetitions: int = 15) -> float:
    """Median seconds to the first token of a short request, beside `others` clients with long ones."""
    is_over, asked = threading.Event(), questions(200, seed=2)

    def work(place: int) -> None:
        client, chance = Client(port, model), random.Random(place)
        while not is_over.is_set():
            client.ask(chance.choice(asked), 64)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(others)]
    for thread in threads:
        thread.start()
    time.sleep(2 if others else 0)
    client, found = Client(port, model), []
    for _ in range(repetitions):
        found.append(client.ask("What?", 4)[1])
        time.sleep(0.05)
    is_over.set()
    for thread in threads:
        thread.join()
    return statistics.median(found)


def processor_seconds(pid: int) -> tuple[float, float]:
    """Of the server, and of the clients in this process: who shares its processors may be what limits it."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"), time.process_time()


def resident(pid: int) -> float:
    """MiB of a process."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def make_model(folder: str) -> None:
    """A tiny model whose answers depend on what is asked, which those of weights as they are drawn do not."""
    from xllm.assembly.opening import load_checkpoint
    from xllm.cli import main as xllm

    if xllm(["init", folder, "--preset", "tiny"]):
        raise SystemExit(1)
    model, _ = load_checkpoint(folder)
    for weight in model.model.language_model.parameters():
        weight.data.mul_(6 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--requests", type=int, default=1000, help="that are compared with an idle server's answers")
    parser.add_argument("--memory-requests", type=int, default=5000)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        model = args.model or os.path.join(folder, "tiny")
        if args.model is None:
            make_model(model)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "xllm", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            measure(server.pid, port, model, args)
        finally:
            server.terminate()
            server.wait()


def measure(pid: int, port: int, model: str, args: argparse.Namespace) -> None:
    """All lines."""
    for _ in range(600):
        try:
            Client(port, model).ask("What?", 2)
            break
        except OSError:
            time.sleep(0.2)
    rates, sample = {}, questions(480, seed=1)
    together(port, model, sample[:48], 16)  # threads are started, memory is taken
    for clients in (1, 4, 16):
        asked = sample[: max(96, 30 * clients)]  # so that ends, where fewer clients ask, count little
        used, number = processor_seconds(pid), 3 * len(asked)
        rates[clients] = statistics.median(together(port, model, asked, clients)[1] for _ in range(3))
        used = [1000 * (after - before) / number for before, after in zip(used, processor_seconds(pid))]
        line = f"{used[0]:.1f} ms of the server's processor time per request, {used[1]:.1f} of the clients'"
        print(f"{clients:3d} clients: {line}")
    for clients, rate in rates.items():
        print(f"{clients:3d} clients: {rate:7.1f} requests/s, {rate / rates[1]:5.2f} x one client")
    idle = first_tokens(port, model, 0)
    beside = first_tokens(port, model, 15)
    line = f"{1000 * idle:.0f} ms idle, {1000 * beside:.0f} ms beside 15 others"
    print(f"first token of a short request: {line}, {beside / idle:.2f} x")
    asked = questions(args.requests, seed=3)
    alone, _ = together(port, model, asked, 1)
    crowded, _ = together(port, model, asked, 16)
    wrong = sum(one != other for one, other in zip(alone, crowded))
    print(f"answers unlike those of an idle server: {wrong} of {len(asked)}; {len(set(alone))} different answers")
    sizes, done = [resident(pid)], 0
    while done < args.memory_requests:
        together(port, model, questions(500, seed=10 + done), 16)
        done += 500
        sizes.append(resident(pid))
    if done:
        half = len(sizes) // 2
        line = f"{sizes[0]:.0f} MiB before, {sizes[half]:.0f} after {500 * half}, {sizes[-1]:.0f} after {done}"
        print(f"resident memory of the server: {line}, {sizes[-1] / sizes[half]:.3f} x in the second half")


if __name__ == "__main__":
    main()
