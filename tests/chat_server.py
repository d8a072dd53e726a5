# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A small server of chat completions on this machine, which misbehaves as it is told."""

import json
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


HANGS = 2.5  # seconds: longer than the tests wait


class ChatServer:
    """Answers every request by `reply(messages)`.

    Args:
        faults: text -> what happens, one after the other, to requests whose last message holds it, before one is
            answered: a status, "hang", "drip", "break", "malformed", "empty" or "null"; a list that ends with "..."
            goes on with what stands before.
    """

    def __init__(self, reply, faults=None):
        self.reply, self.faults = reply, {text: list(these) for text, these in (faults or {}).items()}
        self.answered, self.seen, self.at_once, self.most = defaultdict(int), [], 0, 0
        self.lock = threading.Lock()

    def fault(self, text):
        """What is to go wrong with this request."""
        for key, faults in self.faults.items():
            if key in text and faults:
                if faults[1:] != ["..."]:
                    return faults.pop(0)
                return faults[0]
        return None


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer  # set by `serving`

    def log_message(self, *args):
        pass

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content, chat = request["messages"][-1]["content"], self.chat
        text = content if isinstance(content, str) else json.dumps(content)
        with chat.lock:
            chat.at_once += 1
            chat.most = max(chat.most, chat.at_once)
            chat.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **request})
            fault = chat.fault(text)
        try:
            if fault is None:
                self.answer(request, text)
            else:
                self.fail(fault)
        except (BrokenPipeError, ConnectionResetError):  # the client does not wait so long
            pass
        finally:
            with chat.lock:
                chat.at_once -= 1

    def answer(self, request, text):
        reply = self.chat.reply(request["messages"])
        with self.chat.lock:
            self.chat.answered[text] += 1
        choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        self.send(200, json.dumps({"choices": [choice]}).encode())

    def fail(self, fault):
        bodies = {
            "malformed": b"<html>busy</html>",
            "empty": b'{"choices": []}',
            "null": b'{"choices": [{"message": {"content": null}}]}',
        }
        if isinstance(fault, int):
            headers = {429: {"Retry_After": "0"}, 302: {"Location": "/elsewhere"}}
            self.send(fault, b'{"error": "as told"}', **headers.get(fault, {}))
        elif fault in bodies:
            self.send(200, bodies[fault])
        elif fault == "hang":
            time.sleep(HANGS)
        elif fault == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(int(HANGS / 0.05)):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        else:  # "break"
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')


@contextmanager
def serving(server):
    """The URL of a server that runs for as long."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"chat": server}))
    web.daemon_threads, web.block_on_close = True, False
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}/v1"
    finally:
        web.shutdown()
        web.server_close()
