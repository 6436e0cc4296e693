"""Sweeps by a vLLM server instead of this process, stored as that engine's own.

vLLM pins its own torch and transformers, so it runs in an environment of its own, as a server.
What it computes is compared with a forward pass here before it is used.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType

import numpy as np
import pandas as pd

from calib_utils import generation, openended, provenance, sweeps
from calib_utils.endpoint import Endpoint
from calib_utils.errors import EndpointError, LogProbabilityError, RefusedRequestError
from calib_utils.models import Model, load_model
from calib_utils.probes import KNOWN_TEXT, TOLERANCE
from calib_utils.sweeps import Sweep
from calib_utils.vllm_engine import Engine, ServedContinuations

# Nats. float32 in two engines is apart by rounding (5e-5 measured), bfloat16 by 0.19.
EXACT = 1e-3
_PROBE_TOKENS, _PROBE_TEMPERATURE = 24, 1.5


def serve_command(model: Model | str, port: int = 8000) -> list[str]:
    """The command, in vLLM's environment, of a server that `connect` accepts for this model."""
    model = load_model(model)
    settings = ["--served-model-name", model.key, "--dtype", model.dtype, "--max-logprobs", "-1"]
    # A seeded draw whose prompt is read in parts ends a server on CPUs ("CPU Generator does not use
    # offset", 0.32); the prompts of sweeps are short, so reading them whole costs nothing.
    settings.append("--no-enable-chunked-prefill")
    place = ["--host", "127.0.0.1", "--port", str(port)]
    return ["vllm", "serve", str(model.folder), *settings, *place]


def connect(
    model: Model | str, base_url: str, name: str | None = None, *, check: bool = True, **settings
) -> Engine:
    """A vLLM server, asked whether it computes this model in this model's dtype.

    Args:
        model: with the dtype that the server computes in, `load_model(name, dtype="bfloat16")`.
        base_url: up to and including the version, such as `http://localhost:8000/v1`.
        name: under which the server knows the model; the model's key by default.
        check: compares with a float32 forward pass here. Leave it out for models too large for
            this machine: then weights and dtype are taken on trust, and the record says so.
        settings: of `endpoint.Endpoint`; `concurrency` is the number of requests under way.

    Raises:
        EndpointError: the server cannot be used, or is not vLLM.
        LogProbabilityError: other weights, another precision, or log-probabilities that are wrong.
    """
    model = load_model(model)
    settings = {"timeout": 600.0, "concurrency": 64, "max_bytes": 1 << 26, **settings}
    endpoint = Endpoint(base_url, name or model.key, **settings)
    asked = {"prompt": KNOWN_TEXT, "max_tokens": 1, "temperature": 0}
    fingerprint = endpoint.post("completions", asked, lambda found: found.get("system_fingerprint"))
    if not re.match(r"vllm-\d", str(fingerprint)):
        raise EndpointError(
            f"{base_url} says that it is {fingerprint!r}, not vLLM: for other servers there are "
            "judges only; a vLLM of 0.20 or later must run with its own --fingerprint-mode"
        )
    engine = Engine(model, endpoint, fingerprint)
    if check:
        engine = replace(engine, apart=_compared(engine))
    _probe(engine)
    return engine


def sweep(engine: Engine, plan: Sweep, results_dir: str | Path | None = None) -> pd.DataFrame:
    """`openended.sweep` by this engine: same rows in the same order, resumed in the same way.

    Trees are kept under `results_dir/<model>/texts/<plan.name>.vllm`, recorded under this engine;
    neither engine takes up what the other has stored. Greedy texts are those of transformers but
    where two tokens are equally likely to within rounding; draws are others, since the random
    numbers are.
    """
    tree = partial(ServedContinuations, engine)
    opening = _rebound(sweeps._opening, Continuations=tree)
    grow = _rebound(sweeps.grow, Continuations=tree, _opening=opening)
    run = _rebound(openended.sweep, grow=grow, _record=partial(_record, engine))
    return run(engine.model, replace(plan, name=f"{plan.name}.vllm"), results_dir)


def _probe(engine: Engine) -> None:
    """Tokens drawn at another temperature than 1 and scored as given have the same probability.

    By token ids, unlike `probes`: drawn text need not be read back as the tokens that it was.
    """
    ids = engine.model.tokenizer(KNOWN_TEXT)["input_ids"]
    tree = ServedContinuations(engine, engine.model, ids)
    (drawn,) = tree.complete([()], _PROBE_TOKENS, n_samples=1, temperature=_PROBE_TEMPERATURE)
    (given,) = tree.complete([drawn.token_ids], 1)
    apart = float(np.abs(np.subtract(drawn.log_p, given.prefix_log_p)).max())
    if not apart <= (EXACT if engine.model.dtype == "float32" else TOLERANCE):
        raise LogProbabilityError(
            f"{engine.endpoint.base_url}: a token's log-probability differs by {apart:.4f} nats "
            "between drawing it and scoring it as given; start the server with --logprobs-mode "
            f"raw_logprobs and --dtype {engine.model.dtype}"
        )


def _compared(engine: Engine) -> float:
    """How far the server's log-probabilities of a known text are from float32 here."""
    model, url = engine.model, engine.endpoint.base_url
    first, *rest = model.tokenizer(KNOWN_TEXT)["input_ids"]
    request = [tuple(rest)], 1
    (here,) = generation.complete(replace(model, dtype="float32"), [first], *request)
    serve = " ".join(serve_command(model))
    other = f"{url} serves another model than {model.name}"
    try:
        (there,) = ServedContinuations(engine, model, [first]).complete(*request)
    except RefusedRequestError as error:  # tokens that it does not have
        raise LogProbabilityError(f"{other} ({error}); start it with: {serve}") from error
    apart = float(np.abs(np.subtract(here.prefix_log_p, there.prefix_log_p)).max())
    if not apart <= TOLERANCE:
        raise LogProbabilityError(
            f"{other}: the log-probability of a known token differs by {apart:.2f} nats; start it "
            f"with: {serve}"
        )
    if model.dtype == "float32" and apart > EXACT:
        raise LogProbabilityError(
            f"{url} computes in less than float32: the log-probability of a known token differs "
            f"by {apart:.4f} nats; start it with: {serve}, or load the model with the dtype that "
            "it computes in, dtype='bfloat16' for example"
        )
    if model.dtype != "float32" and apart <= EXACT:
        raise LogProbabilityError(
            f"{url} computes in float32, not in {model.dtype} (a known text differs by "
            f"{apart:.1e} nats from float32): load the model with dtype='float32'"
        )
    return apart


def _record(engine: Engine, model: Model, plan: Sweep) -> dict:
    return {
        **openended._record(model, plan),
        "engine": engine.version,
        "engine_fingerprint": engine.fingerprint,
        "engine_apart": engine.apart,
        "environment": provenance.environment(engine.version),
    }


def _rebound(function: FunctionType, **names) -> FunctionType:
    """The function with some names of its module bound to other things.

    The sources of `sweeps` are part of what stored texts are recorded under, so a parameter there,
    which would do the same, would make every stored text foreign.
    """
    known = {**function.__globals__, **names}
    other = FunctionType(function.__code__, known, function.__name__, function.__defaults__)
    other.__kwdefaults__ = function.__kwdefaults__
    return other
