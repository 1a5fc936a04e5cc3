"""A tiny text model that is made in milliseconds, its tokenizer and a batch; and a Hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.tokenization import train_word_tokenizer

PAD, BOS, EOS = 0, 1, 2
#: More than 50, the `top_k` that transformers samples with unless told otherwise.
VOCAB_SIZE = 60
LATENT_DIM = 4
WORDS = [f"w{i:02d}" for i in range(VOCAB_SIZE - 4)]
SENTENCES = ["w00 w01 w02", "w03", "w04 w05 w06 w07 w08", "w09 w10"]


def tiny_config(**settings: Any) -> LatentEBMTextConfig:
    """A configuration of a few thousand weights, without dropout and with short chains."""
    defaults = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "embedding_size": 8,
        "latent_dim": LATENT_DIM,
        "prior_hidden_size": 8,
        "prior_sampler": {"name": "langevin", "num_steps": 3, "step_size": 0.4},
        "posterior_sampler": {"name": "langevin", "num_steps": 2, "step_size": 0.1},
        "dropout": 0.0,
        "max_sentence_length": 12,
    }
    return LatentEBMTextConfig(**{**defaults, **settings})


def tiny_model(seed: int = 0, **settings: Any) -> LatentEBMForTextGeneration:
    """A model whose weights are large enough for its words to depend on its latents."""
    model = LatentEBMForTextGeneration(tiny_config(**settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.7, generator=seeded(seed))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer that knows exactly the model's words."""
    return train_word_tokenizer([" ".join(WORDS)])


def tiny_batch() -> dict[str, Tensor]:
    """Four sentences of different lengths, with `input_ids`, `attention_mask` and `labels`."""
    batch = dict(tiny_tokenizer()(SENTENCES, padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def seeded(seed: int = 0) -> torch.Generator:
    """A generator at the start of its stream."""
    return torch.Generator().manual_seed(seed)


class _FakeHubHandler(BaseHTTPRequestHandler):
    """The endpoints of the Hub that a push and a pull of a small model need, with all files in memory."""

    COMMIT = "0" * 40
    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitOid": self.COMMIT, "commitUrl": f"{self._url()}/commit/{self.COMMIT}"})
        elif self.path.endswith("/preupload/main"):
            uploads = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": uploads})
        elif self.path == "/api/repos/create":
            self._answer({"url": self._url()})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        else:
            self._answer({}, 404)

    def do_GET(self) -> None:
        path = unquote(self.path)
        if "/resolve/" in path and path.rpartition("/")[2] in self.files:
            content = self.files[path.rpartition("/")[2]]
            self._send(content, 200, {"X-Repo-Commit": self.COMMIT, "ETag": hashlib.sha1(content).hexdigest()})
        elif path in ("/api/models/me/tiny", "/api/models/me/tiny/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            self._answer({"id": "me/tiny", "sha": self.COMMIT, "siblings": siblings, "private": False, "tags": []})
        else:
            self._send(b"", 404, {"X-Repo-Commit": self.COMMIT, "X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _url(self) -> str:
        return f"http://{self.headers['Host']}/me/tiny"

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def fake_hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A Hub with the one repository `me/tiny`: its address, and the files that were pushed."""
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_FakeHubHandler,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
