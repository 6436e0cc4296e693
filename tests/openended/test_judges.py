"""The judge over a real HTTP server on loopback: failures, retries, resuming, and the key."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch

import calib_utils as cu
from calib_utils.core.prompts import render
from calib_utils.core.tasks import Task
from calib_utils.errors import EndpointError, JudgeError, RefusedRequestError
from calib_utils.models import served
from calib_utils.models.endpoint import KEY_VARIABLE, Endpoint
from calib_utils.openended.judges import LocalChat, endpoint_judge, local_judge
from calib_utils.openended.verifiers import LABEL_COLUMNS

KEY = "sk-planted-7f3a/+=key"
GOOD = {"reason": "Fine.", "grammar": 9, "semantics": 10, "overall": 9}


def completion(text, finish="stop", **message):
    choice = {"message": {"content": text, **message}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


ANSWER = completion(json.dumps(GOOD))


class Server(ThreadingHTTPServer):
    """Answers with what `script(request, number)` returns: (status, headers, body)."""

    daemon_threads = True

    def __init__(self, script):
        self.script, self.requests, self.lock = script, [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that give up early are part of the tests


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.title(): value for name, value in self.headers.items()}
        request = {"path": self.path, "headers": headers, **json.loads(body)}
        with self.server.lock:
            self.server.requests.append(request)
            number = len(self.server.requests) - 1
        status, headers, content = self.server.script(request, number)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in content if not isinstance(content, bytes) else [content]:
            self.wfile.write(part)
            self.wfile.flush()

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Starts a server with a script, or with a list of answers given in turn."""
    running = []

    def start(script):
        if isinstance(script, list):
            answers = script
            server = Server(lambda request, number: answers[min(number, len(answers) - 1)])
        else:
            server = Server(script)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def judge_of(tmp_path):
    def make(server, **settings):
        settings = {"cache_dir": tmp_path / "answers", "timeout": 20, **settings}
        return endpoint_judge(server.base_url, "some/model", **settings)

    return make


def items(*texts, ended=True):
    return pd.DataFrame({"prompt": "Name a city.", "text": list(texts), "ended": ended})


def judged(judge, *texts, **options):
    return judge.judge(items(*texts, **options))


def test_labels_of_an_honest_server(serve, judge_of):
    def script(request, number):
        message = request["messages"][0]["content"]
        return completion(json.dumps(GOOD | {"semantics": 4 if "Atlantis" in message else 10}))

    server = serve(script)
    judge = judge_of(server)
    labels = judged(judge, "Paris", "Atlantis", "Rome", "Paris")
    assert tuple(labels) == LABEL_COLUMNS
    assert labels["valid"].tolist() == [True, False, True, True]
    assert labels["semantics"].tolist() == [10, 4, 10, 10]
    assert len(server.requests) == 3  # the repeated item is asked once
    asked = server.requests[0]
    assert asked["path"] == "/v1/chat/completions" and asked["model"] == "some/model"
    assert asked["temperature"] == 0 and asked["headers"]["Authorization"] == "Bearer none"
    assert judge.name == "some--model"


def test_answers_of_another_judge_are_not_taken(serve, judge_of):
    server = serve([ANSWER])
    for options in ({}, {}, {"temperature": 0.6}):
        assert judged(judge_of(server, options=options), "Paris")["valid"].tolist() == [True]
    assert [asked["temperature"] for asked in server.requests] == [0, 0.6]


SOON = {"Retry-After-Ms": "1"}


@pytest.mark.parametrize(
    "failure",
    [(429, SOON, b"slow down"), (503, SOON, b"<html>busy</html>"), (500, SOON, b"")],
    ids=["429", "503", "500"],
)
def test_a_passing_failure_is_retried(serve, judge_of, failure):
    server = serve([failure, failure, ANSWER])
    assert judged(judge_of(server), "Paris")["valid"].tolist() == [True]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content-Type": "text/html"}, b"<html>a proxy's page</html>"),
        (200, {}, b"<html>a proxy's page</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": 7}}]}'),
        (200, {}, b'{"choices": [{"message": {"content": [7]}}]}'),
        (200, {}, b"[[" * 50_000),
        (200, {}, b'{"choices": "\xff\xfe"}'),
    ],
    ids=["page", "html", "empty", "number", "part", "nested", "no-utf8"],
)
def test_an_answer_that_is_no_chat_is_never_guessed(serve, judge_of, answer):
    server = serve([answer])
    with pytest.raises(EndpointError, match=r"in another form.*check that base_url"):
        judged(judge_of(server), "Paris")
    assert len(server.requests) == 1


def test_a_lasting_failure_ends_the_run_and_keeps_what_is_there(serve, judge_of):
    script = [ANSWER, (503, SOON, b"out of memory")]
    server = serve(script)
    judge = judge_of(server, attempts=3, concurrency=1)
    with pytest.raises(EndpointError, match=r"503.*out of memory.*3 attempts"):
        judged(judge, "Paris", "Rome", "Oslo")
    assert len(server.requests) == 4  # and Oslo was not asked
    script[1] = ANSWER
    assert judged(judge, "Paris", "Rome", "Oslo")["valid"].all()
    assert len(server.requests) == 6


def test_without_the_library_the_extra_is_named(judge_of, serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"pip install 'calib-utils\[judge\]'"):
        judged(judge_of(serve([completion("")])), "Paris")


def test_where_bars_are_disabled_there_is_none(serve, judge_of, capsys):
    """On a page that is executed for the book a bar would be an output."""
    assert os.environ["TQDM_DISABLE"] == "1"
    assert judge_of(serve([ANSWER])).judge(items("Paris"))["valid"].all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("pace", [0.05, 30], ids=["dripping", "silent"])
def test_a_slow_server_is_given_up(serve, judge_of, pace):
    """No byte is late where it drips, so that only a limit of the whole can end it."""
    held = threading.Event()

    def drip():
        while not held.wait(pace):
            yield b" "

    server = serve(lambda request, number: (200, {}, drip()))
    begun = time.monotonic()
    with pytest.raises(EndpointError, match=r"no answer in 2 attempts of 0\.5 s"):
        judged(judge_of(server, timeout=0.5, attempts=2), "Paris")
    held.set()
    assert time.monotonic() - begun < 15


def test_what_is_wrong_for_one_item_leaves_the_others(serve, judge_of):
    def script(request, number):
        message = request["messages"][0]["content"]
        if "too long" in message:
            return 400, {}, b"maximum context length exceeded"
        if "huge" in message:
            return completion("x" * 1_000_000)
        return ANSWER

    labels = judged(judge_of(serve(script)), "Paris", "too long", "huge")
    assert labels["valid"].isna().tolist() == [False, True, True]
    assert "maximum context length" in labels["reason"][1]
    assert "reply of 1,000,000 characters" in labels["reason"][2]


def test_what_is_wrong_for_every_item_raises(serve, judge_of):
    server = serve([(422, {}, b"unknown field")])
    with pytest.raises(RefusedRequestError, match="unknown field"):
        judged(judge_of(server), "Paris", "Rome")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, KEY_VARIABLE), (403, KEY_VARIABLE), (404, "/v1"), (302, "redirect")],
)
def test_a_final_status_is_not_retried_and_names_the_remedy(serve, judge_of, status, remedy):
    server = serve([(status, {"Location": "/v1/elsewhere"}, b"no")])
    with pytest.raises(EndpointError, match=f"(?s){status}.*{remedy}"):
        judged(judge_of(server, concurrency=1), "Paris", "Rome")
    assert len(server.requests) == 1


def test_an_unreadable_answer_is_asked_for_again_and_never_guessed(serve, judge_of):
    bad = json.dumps(GOOD | {"grammar": "9"})
    server = serve([completion(bad), ANSWER])
    assert judged(judge_of(server), "Paris")["valid"].tolist() == [True]
    assert "grammar='9'" in server.requests[1]["messages"][0]["content"]

    server = serve([completion(bad)])
    labels = judged(judge_of(server), "Paris")
    assert labels.loc[0, ["grammar", "semantics", "overall", "valid"]].isna().all()
    assert "3 replies" in labels["reason"][0] and "grammar='9'" in labels["reason"][0]
    assert len(server.requests) == 3
    judged(judge_of(server), "Paris")
    assert len(server.requests) == 6  # a failure is not kept


@pytest.mark.parametrize(
    "reply",
    [
        completion(json.dumps(GOOD), finish="length"),
        completion(None, reasoning_content="still thinking"),
        completion("<think>hm"),
    ],
)
def test_an_answer_cut_off_by_max_tokens_is_none(serve, judge_of, reply):
    labels = judged(judge_of(serve([reply])), "Paris")
    assert labels["valid"].isna().all()


def test_requests_run_at_once_but_no_more_than_allowed_and_keep_their_order(serve, judge_of):
    running, at_once = set(), []

    def script(request, number):
        running.add(number)
        at_once.append(len(running))
        score = int(request["messages"][0]["content"].split("city ")[-1][:2])
        time.sleep(0.02 * (11 - score % 10))
        running.remove(number)
        return completion(json.dumps(GOOD | {"overall": score - 10}))

    order = [13, 11, 20, 12, 17, 15, 14, 16, 19, 18]
    server = serve(script)
    labels = judged(judge_of(server, concurrency=3), *(f"city {n}." for n in order))
    assert (labels["overall"] + 10).tolist() == order and len(server.requests) == 10
    assert 2 <= max(at_once) <= 3


def test_cached_answers_that_cannot_be_trusted_are_asked_again(serve, judge_of, tmp_path):
    server = serve([ANSWER])
    judged(judge_of(server), "Paris")
    (file,) = (tmp_path / "answers").rglob("*.json")
    record = json.loads(file.read_text())
    broken = ["", "{"]
    for change in ({"overall": 11}, {"overall": True}, {"more": 1}):
        broken.append(json.dumps(record | {"verdict": record["verdict"] | change}))
    for n, content in enumerate(broken):
        file.write_text(content)
        assert judged(judge_of(server), "Paris")["valid"].all()
        assert len(server.requests) == n + 2
    assert not [path for path in (tmp_path / "answers").rglob(".*")]


def test_a_cache_that_cannot_be_written_is_a_named_error(serve, judge_of, tmp_path):
    (tmp_path / "answers").write_text("a file where a folder should be")
    with pytest.raises(JudgeError, match="cache_dir"):
        judged(judge_of(serve([ANSWER])), "Paris")


RESUMED = """
import sys, pandas as pd
from calib_utils.openended.judges import endpoint_judge
judge = endpoint_judge(sys.argv[1], "m", cache_dir=sys.argv[2], concurrency=2)
items = pd.DataFrame({"prompt": "p", "text": [str(n) for n in range(40)], "ended": True})
print(judge.judge(items)["overall"].tolist())
"""


@pytest.mark.full
def test_a_run_that_is_killed_goes_on_where_it_was(serve, tmp_path):
    killed_at = threading.Event()

    def script(request, number):
        if number >= 20:
            killed_at.wait()
        return completion(json.dumps(GOOD | {"overall": 1 + number % 10}))

    server = serve(script)
    command = [sys.executable, "-c", RESUMED, server.base_url, str(tmp_path / "answers")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    # Both of its requests are here and held, so that none of them arrives after its end.
    while len(server.requests) < 22 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_at.set()
    kept = list((tmp_path / "answers").rglob("*.json"))
    assert len(kept) == 20
    stored = {p.name: p.read_bytes() for p in kept}
    before = len(server.requests)
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert len(server.requests) - before == 40 - len(kept)
    after = {p.name: p.read_bytes() for p in (tmp_path / "answers").rglob("*.json")}
    assert len(after) == 40 and stored.items() <= after.items()
    assert "None" not in done.stdout and "NA" not in done.stdout


def test_the_key_is_sent_and_found_nowhere_else(
    serve, judge_of, tmp_path, monkeypatch, caplog, capfd
):
    """The server is hostile: it repeats the key, escaped too, in answers and error messages."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OTHER_KEY", KEY)
    escaped = KEY.replace("/", "\\/").replace("s", "\\u0073", 1)
    echo = json.dumps(GOOD | {"reason": f"you sent {KEY}"})
    body = completion(echo)[2].replace(KEY.encode(), escaped.encode())
    # And once more inside the reply, where only its reader decodes the escapes.
    spelled = "".join(f"\\\\u00{ord(letter):02X}" for letter in KEY).encode()
    script = [(503, SOON, KEY.encode()), (200, {}, body), (200, {}, body.replace(b"you", spelled))]
    server = serve(script)
    judge = judge_of(server, key_variable="OTHER_KEY")
    labels = judge.judge(items("Paris", "Rome")).sort_values("reason", ignore_index=True)
    assert {r["headers"]["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    assert labels["reason"].tolist() == ["[key] sent [key]", "you sent [key]"]
    shown = [repr(judge), repr(judge.backend), str(vars(judge)), str(judge.identity)]
    shown.append(labels.to_csv())
    for status in (401, 400, 503):
        script[:] = [(status, SOON, KEY.encode() * 20)]
        with pytest.raises(EndpointError) as caught:
            judged(judge_of(server, key_variable="OTHER_KEY", attempts=1), f"{status}")
        error, frames = caught.value, caught.tb
        while frames.tb_frame.f_code.co_filename == __file__:  # whose locals hold the key
            frames = frames.tb_next
        found = traceback.TracebackException(type(error), error, frames, capture_locals=True)
        shown += ["".join(found.format()), repr(caught.value)]
        assert str(status) in shown[-1]
    captured = capfd.readouterr()
    shown += [captured.out, captured.err, caplog.text]
    assert not [text for text in shown if KEY in text or KEY[:12] in text]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written and b"[key]" in written  # the answers are among it


def test_a_redirect_does_not_carry_the_key_away(serve, judge_of, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    thief = serve([ANSWER])
    for status in (301, 307):
        server = serve([(status, {"Location": thief.base_url + "/chat/completions"}, b"")])
        with pytest.raises(EndpointError, match="redirect"):
            judged(judge_of(server), "Paris")
    assert not thief.requests


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base_url": "http://user:secret@localhost/v1"}, "without a password"),
        ({"base_url": "http://localhost/v1?key=secret"}, "no query"),
        ({"base_url": "localhost:8000/v1"}, "http"),
        ({"base_url": "file:///etc/passwd"}, "http"),
        ({"key_variable": KEY}, "not the key"),
        ({"base_url": "http://example.org/v1"}, "without encryption"),
        ({"base_url": f"https://example.org/{KEY}/v1"}, "repeats the key"),
        ({"options": {"api_key": KEY}}, "repeats the key"),
        ({"attempts": 0}, "attempts=0"),
        ({"concurrency": 2.5}, "concurrency=2.5"),
    ],
)
def test_an_endpoint_refuses_what_would_leak_or_never_work(monkeypatch, wrong, message):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(EndpointError, match=message) as caught:
        Endpoint(**{"base_url": "https://localhost/v1", "model": "m", **wrong})
    assert KEY not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("bad", ["sk-1\nX-Evil: 1", "sk 1", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch, bad):
    monkeypatch.setenv(KEY_VARIABLE, bad)
    with pytest.raises(EndpointError) as caught:
        Endpoint("https://localhost/v1", "m")
    assert bad not in str(caught.value)


def test_a_key_that_is_set_later_is_not_sent_in_clear(monkeypatch):
    endpoint = Endpoint("http://example.org/v1", "m")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(EndpointError, match="without encryption"):
        list(endpoint.replies(["hello"]))


def test_a_field_of_the_request_is_left_out_or_renamed(serve, judge_of):
    server = serve([ANSWER])
    options = {"max_tokens": None, "temperature": None, "max_completion_tokens": 900}
    assert judged(judge_of(server, options=options), "Paris")["valid"].all()
    asked = server.requests[0]
    assert asked["max_completion_tokens"] == 900 and not {"max_tokens", "temperature"} & set(asked)


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
NESTED = json.dumps(GOOD)[:-2] + "[" * 900 + "]" * 900 + "}"


def test_odd_replies_end_no_run(serve, judge_of):
    """Content in parts is read; scores that are a deep nest are no answer, and only of one item."""
    whole = json.dumps(GOOD)
    parts = [THOUGHT, {"type": "text", "text": whole[:9]}, {"type": "text", "text": whole[9:]}]
    contents = {"Paris": parts, "Rome": [whole], "Oslo": NESTED, "Bonn": whole}

    def script(request, number):
        message = request["messages"][0]["content"]
        return completion(next(c for city, c in contents.items() if city in message))

    labels = judged(judge_of(serve(script)), *contents)
    assert labels["valid"].isna().tolist() == [False, False, True, False]
    assert "overall=[[[" in labels["reason"][2]


def test_an_empty_key_variable_sends_no_key(serve, judge_of, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # which is not ours to send
    server = serve([ANSWER])
    judged(judge_of(server), "Paris")
    assert server.requests[0]["headers"]["Authorization"] == "Bearer none"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"prompt": ["a"], "text": ["b"]}), "ended"),
        (items("Paris", None), "item 1"),
        (items("Paris", ended="no"), "ended"),
        (items("Paris", ended=None), "ended"),
        (None, "columns"),
    ],
)
def test_items_that_are_none(serve, judge_of, table, message):
    with pytest.raises(JudgeError, match=message):
        judge_of(serve([completion("")])).judge(table)


def test_a_local_judge_is_batched_like_one_by_one(tiny, tmp_path):
    """A tiny random model answers nonsense: NA with a reason, the same in any batch."""
    # One spells a special token, which must not end the judge's prompt, nor the run.
    texts = ["a", "a b ab, and longer than the others", "zebra", "1,2", "a<|end|>b"]
    labels = [
        judged(local_judge(tiny(chat=True), cache_dir=None, batch_size=n, max_tokens=8), *texts)
        for n in (1, 3)
    ]
    pd.testing.assert_frame_equal(*labels)
    assert labels[0]["valid"].isna().all() and (labels[0]["reason"] != "").all()
    assert "contains '<|end|>'" in labels[0]["reason"].iloc[-1]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "qwen3.5"])
def test_a_local_reply_is_what_transformers_generates(tiny, architecture):
    """In batches, with a shared beginning, as in one message alone with `generate`."""
    model = tiny(architecture, chat=True)
    messages = ["a", "a b ab, and much longer than the others", "zebra", "1", "a b"]
    chats = [LocalChat(model, max_tokens=12, batch_size=n) for n in (1, 4)]
    one, four = (dict(chat.replies(messages)) for chat in chats)
    assert one == four and len({reply.text for reply in one.values()}) > 1
    for place, message in enumerate(messages):
        prompt = render(model.tokenizer, Task("chat", message, ("yes",)))
        ids = torch.tensor([prompt.ids])
        ends = sorted({*prompt.end_ids, model.tokenizer.eos_token_id} - {None})
        out = model.network.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
        )[0, ids.shape[1] :].tolist()
        ended = out[-1] in ends
        text = model.tokenizer.decode(out[: len(out) - ended], skip_special_tokens=True)
        assert (one[place].text, one[place].ended) == (text, ended)


def test_a_base_model_cannot_judge(tiny):
    with pytest.raises(JudgeError, match="chat template"):
        judged(local_judge(tiny(), cache_dir=None), "Paris")


def is_listening(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.full
@pytest.mark.models
def test_a_real_server(free_port, tmp_path):
    """`transformers serve` with an embedded model: replies come, as a generator it is refused."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    folder = str(cu.load_model("smollm2-135m-instruct").folder)
    port = free_port()
    program = Path(sys.executable).with_name("transformers")
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(program), "serve", folder, *options], stdout=out, stderr=out, env=environment
        )
    try:
        begun = time.monotonic()
        while not is_listening(port):
            assert server.poll() is None and time.monotonic() - begun < 600, log.read_text()[-3000:]
            time.sleep(0.1)
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", folder, max_tokens=24)
        messages = ["What is the capital of France? Answer in one word.", "Write a long story."]
        replies = dict(endpoint.replies(messages))
        assert "Paris" in replies[0].text and replies[0].ended and not replies[1].ended
        judge = endpoint_judge(
            endpoint.base_url, folder, name="served", max_tokens=48, cache_dir=tmp_path
        )
        labels = judged(judge, "Paris", "xq zzv")
        for row in labels.itertuples():
            assert pd.isna(row.valid) == any(map(pd.isna, row[1:4])) and row.reason
        with pytest.raises(EndpointError, match=r"404|does not score the tokens"):
            served.connect(cu.load_model("smollm2-135m-instruct"), endpoint.base_url, folder)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
