"""A pretended Python with vLLM: run as ``python -m rlrt.serve_vllm ...`` would be, it answers as a server does, with two
processes besides, that only SIGKILL ends. ``PRETEND`` in the environment: how it goes wrong."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

KEYS = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
rms_norm_eps tie_word_embeddings"""
STUBBORN = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 12, 15)]; time.sleep(600)"


class Handler(http.server.BaseHTTPRequestHandler):
    label, about = "default", None

    def do_GET(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        if self.headers.get("Authorization") != f"Bearer {os.environ['RLRT_SERVER_TOKEN']}":
            self.send(401, {})
        elif self.path == "/inference/v1/generate" and os.environ.get("PRETEND") == "dies sampling":
            print("MemoryError: no room for a block", flush=True)
            os._exit(9)
        else:
            self.send(200, self.answer(body))

    do_POST = do_GET

    def answer(self, body):
        if self.path == "/finish_weight_update":
            type(self).label = body["weight_version"]
        spans = [{"version": self.label, "start": 0, "end": 2}]
        choice = {
            "token_ids": [5, 2],
            "logprobs": {"content": [{"logprob": -0.25}, {"logprob": -0.5}]},
            "finish_reason": "stop",
        }
        return {
            "/version": {"version": "0.32.0"},
            "/collective_rpc": {"results": [self.about]},
            "/reset_prefix_cache": {"success": True},
            "/weight_info": {"weight_version": self.label},
            "/inference/v1/generate": {"choices": [choice | {"weight_versions": spans}]},
        }.get(self.path, {})

    def send(self, status, value):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *args):
        pass


def main(words):
    given = dict(itertools.pairwise(words))
    print("ready to start", *sorted(k[2:] for k in given if k.startswith("--")), flush=True)
    if os.environ.get("PRETEND") == "dies starting":
        print("ValueError: no such kernel, RLRT_SERVER_TOKEN=" + os.environ["RLRT_SERVER_TOKEN"], flush=True)
        sys.exit(1)
    config = json.loads((Path(given["--model"]) / "config.json").read_text())
    shape = {k: config.get(k) for k in KEYS.split()} | {
        "rope_theta": (config.get("rope_parameters") or {}).get("rope_theta")
    }
    Handler.about = {
        "shape": shape,
        "dtype": given["--dtype"],
        "logprobs": "processed_logprobs",
        "backend": "rlrt_sent",
        "broken": False,
    }
    workers = [subprocess.Popen([sys.executable, "-c", STUBBORN, more]) for more in ("worker", "tracker")]
    server = http.server.ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler)
    print("pids", os.getpid(), *(w.pid for w in workers), "cards", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
