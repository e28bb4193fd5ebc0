"""The server as clients see it, through the official client; and the commands as users type them."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.cli import run
from orchestrator.demo.processes import Children, edge_agent, headtail
from orchestrator.tensor_parallel.connections import http_config
from orchestrator.tensor_parallel.errors import PartitionError
from orchestrator.tensor_parallel.generation import Generator
from orchestrator.tensor_parallel.server import Service, build_app
from orchestrator.tensor_parallel.serving import run_worker
from orchestrator.tensor_parallel.text import Text
from tests.orchestrator.tensor_parallel.conftest import wait_until
from tests.orchestrator.tensor_parallel.test_generation import greedy

TO_THE_END = {"ignore_eos": True}  # a drawn token may be the end of the text


@contextlib.contextmanager
def serving(running, **options):
    text = Text(running.shards)
    generator = Generator(running.engine, text)
    service = Service(running.engine, generator, text, **options)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(http_config(build_app(service), requests=8))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        _servers[url] = server
        yield url, service
    finally:
        server.should_exit = True
        thread.join()
        generator.close()


_servers = {}


def _stop(url):
    """As a signal does."""
    _servers[url].should_exit = True


@pytest.fixture
def server(cluster, tiny):
    with serving(cluster(tiny.folder, ranks=2), api_key="secret", lookup=4) as (url, service):
        yield url, service


def client(url, key="secret"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def test_the_official_client_gets_the_same_text_whole_and_streamed(server, tiny):
    url, service = server
    prompt = "Hello there"
    wanted = service.text.decode(greedy(tiny.model, service.text.encode(prompt), 8))
    answer = client(url).completions.create(model="m", prompt=prompt, max_tokens=8, temperature=0)
    assert answer.choices[0].text == wanted
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 8)
    assert answer.choices[0].finish_reason == "length"
    for same in ([prompt], service.text.encode(prompt)):
        again = client(url).completions.create(model="m", prompt=same, max_tokens=8, temperature=0)
        assert again.choices[0].text == wanted
    stream = client(url).completions.create(model="m", prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == wanted


def test_chat_streams_with_usage_and_stops_at_a_string(server):
    url, service = server
    messages = [{"role": "user", "content": "Say it"}]
    whole = client(url).chat.completions.create(model="m", messages=messages, max_completion_tokens=10, temperature=0)
    text = whole.choices[0].message.content
    chunks = list(
        client(url).chat.completions.create(
            model="m",
            messages=messages,
            max_tokens=10,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.prompt_tokens == len(service.text.chat(messages))
    stop = text[3:5]
    cut = client(url).chat.completions.create(model="m", messages=messages, max_tokens=10, temperature=0, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_models_health_and_metrics(server):
    url, service = server
    assert [model.id for model in client(url).models.list().data] == [service.model]
    client(url).completions.create(model="m", prompt="x", max_tokens=3, extra_body=TO_THE_END)
    health = json.loads(urllib.request.urlopen(f"{url}/health").read())
    assert health["status"] == "ok"
    assert [node["alive"] for node in health["nodes"]] == [True, True]
    service.generator.counters.prompt_tokens = 123_456_789
    metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    found = {name: family.samples[0].value for name, family in families.items()}
    assert all(family.documentation and len(family.samples) == 1 for family in families.values())
    assert found["headtail_llm_generated_tokens"] == 3
    assert found["headtail_llm_prompt_tokens"] == 123_456_789
    assert found["headtail_llm_nodes_alive"] == 2
    assert families["headtail_llm_steps"].type == "counter"
    assert families["headtail_llm_nodes_alive"].type == "gauge"


def test_a_model_is_found_by_its_name_and_what_is_not_there_is_named(server):
    url, service = server
    assert client(url).models.retrieve(service.model).id == service.model
    with pytest.raises(openai.NotFoundError) as refused:
        client(url).models.retrieve("gpt-4")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client(url).embeddings.create(model="m", input="x")


def test_a_wrong_key_is_refused(server):
    with pytest.raises(openai.AuthenticationError):
        client(server[0], "wrong").models.list()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON"),
        (b'{"prompt": 5}', "JSON"),
        (b'{"prompt": "x", "n": 2}', "n = 1"),
        (b'{"prompt": "x", "temperature": -1}', "temperature"),
        (b'{"prompt": "x", "logit_bias": {"1": 2}}', "logit_bias"),
        (b'{"prompt": ""}', "prompt"),
        (b'{"prompt": [999999]}', "below 320"),
        (b'{"prompt": ["x", "y"]}', "one prompt, found 2"),
        (b'{"prompt": ["x", 5]}', "one prompt, found 2"),
        (b'{"prompt": []}', "prompt of 1 to"),
        (b'{"prompt": "' + b"x" * 500 + b'"}', "prompt of 1 to"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens"),
        (b'{"prompt": "x", "logprobs": 0}', "logprobs"),
        (b'{"prompt": "x", "suffix": "y"}', "suffix"),
        (b'{"prompt": "x", "user": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "JSON"),
    ],
)
def test_requests_that_cannot_run_get_400_and_the_server_goes_on(body, message, server):
    url = server[0]
    headers = {"Authorization": "Bearer secret"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers))
    assert refused.value.code == 400
    assert message in json.loads(refused.value.read())["error"]["message"]
    answer = client(url).completions.create(model="m", prompt="x", max_tokens=2, extra_body=TO_THE_END)
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_chat_of_no_tokens_is_refused(field, server):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError, match="max_tokens >= 1"):
        client(server[0]).chat.completions.create(model="m", messages=messages, extra_body={field: 0})


def test_fields_that_are_null_or_ask_for_nothing_are_passed_over(server):
    fields = {"stream": None, "stream_options": {"include_usage": None}, "logprobs": None, "echo": False, "n": None}
    text = client(server[0]).completions.create(
        model="m", prompt="x", max_tokens=2, extra_body={**fields, "suffix": "", "ignore_eos": True}
    )
    chat = client(server[0]).chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], max_tokens=2, logprobs=False,
        extra_body={"stream": None, "top_logprobs": 0, "ignore_eos": True},
    )  # fmt: skip
    assert text.usage.completion_tokens == chat.usage.completion_tokens == 2


def test_a_prompt_that_takes_long_to_tokenise_stops_nobody_else(server, monkeypatch):
    url, service = server
    begun, go_on, encode = threading.Event(), threading.Event(), service.text.encode

    def slowly(text, **options):
        begun.set()
        assert go_on.wait(30)
        return encode(text, **options)

    monkeypatch.setattr(service.text, "encode", slowly)
    found = []
    asking = threading.Thread(
        target=lambda: found.append(client(url).completions.create(model="m", prompt="x", max_tokens=2))
    )
    asking.start()
    assert begun.wait(20)
    assert urllib.request.urlopen(f"{url}/health", timeout=20).status == 200
    tokens = client(url).models.list()
    go_on.set()
    asking.join()
    assert tokens.data
    assert len(found) == 1


def held(monkeypatch, text, name):
    """A method of the text that is held up at its first call: when that came, what lets it go on, and what it was given."""
    begun, go_on, seen, method = threading.Event(), threading.Event(), [], getattr(text, name)

    def slowly(given, **options):
        seen.append(given)
        begun.set()
        assert go_on.wait(30)
        return method(given, **options)

    monkeypatch.setattr(text, name, slowly)
    return begun, go_on, seen


def test_a_chat_template_that_takes_long_holds_up_no_prompt_of_another_client(server, monkeypatch):
    url, service = server
    begun, go_on, _ = held(monkeypatch, service.text, "chat")
    message, found = {"role": "user", "content": "hi"}, []
    asking = threading.Thread(
        target=lambda: found.append(
            client(url).chat.completions.create(model="m", messages=[message], max_tokens=2, extra_body=TO_THE_END)
        )
    )
    asking.start()
    try:
        assert begun.wait(20)
        quick = client(url).with_options(timeout=10)
        assert quick.completions.create(model="m", prompt="x", max_tokens=2).choices
    finally:
        go_on.set()
        asking.join()
    assert len(found) == 1


def test_the_prompt_of_a_client_that_left_while_it_waited_is_not_read(server, monkeypatch):
    url, service = server
    begun, go_on, seen = held(monkeypatch, service.text, "encode")
    asking = threading.Thread(target=lambda: client(url).completions.create(model="m", prompt="first", max_tokens=2))
    asking.start()
    try:
        assert begun.wait(20)
        body = b'{"prompt": "left", "max_tokens": 2}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20) as raw:
            raw.sendall(head.encode() + body)
            assert urllib.request.urlopen(f"{url}/health", timeout=20).status == 200  # by now it waits
        assert urllib.request.urlopen(f"{url}/health", timeout=20).status == 200  # by now it left
    finally:
        go_on.set()
        asking.join()
    client(url).completions.create(model="m", prompt="last", max_tokens=2)
    assert seen == ["first", "last"]


def test_a_stream_that_the_servers_end_cuts_off_ends_with_an_error_and_no_traceback(cluster, tiny, monkeypatch, capfd):
    with serving(cluster(tiny.folder, ranks=1)) as (url, service):
        go_on, step = threading.Event(), service.engine.step

        def slowly(pieces):
            go_on.wait(0.2)
            return step(pieces)

        monkeypatch.setattr(service.engine, "step", slowly)
        stream = client(url).completions.create(
            model="m", prompt="x", max_tokens=100, stream=True, extra_body=TO_THE_END
        )
        assert next(iter(stream))
        _stop(url)
        with pytest.raises(openai.APIError, match="server ends"):
            list(stream)
        go_on.set()
    assert "Traceback" not in capfd.readouterr().err


def test_a_prompt_beyond_the_context_bears_the_code_that_clients_know(server):
    with pytest.raises(openai.BadRequestError) as refused:
        client(server[0]).chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 500}])
    assert refused.value.code == "context_length_exceeded"


def test_a_client_that_leaves_frees_its_slot(server):
    url, service = server
    stream = client(url).completions.create(
        model="m", prompt="x", max_tokens=120, temperature=0, stream=True, extra_body=TO_THE_END
    )
    next(iter(stream))
    stream.close()
    for prompt in "abcdef":
        client(url).completions.create(model="m", prompt=prompt, max_tokens=2)
    assert service.generator.load == (0, 0)


def test_a_client_that_leaves_before_a_whole_answer_ends_its_generation(server, monkeypatch):
    url, service = server
    stepped, slow, step = threading.Event(), threading.Event(), service.engine.step

    def slowly(pieces):
        stepped.set()
        slow.wait(0.05)  # tokens come all the while, and are not what ends it
        return step(pieces)

    monkeypatch.setattr(service.engine, "step", slowly)
    body = b'{"prompt": "x", "max_tokens": 120, "ignore_eos": true}'
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        assert stepped.wait(20)
    wait_until(lambda: service.generator.load == (0, 0))
    assert service.generator.counters.failed == 1  # cancelled, not generated to its end


def write_nodes(path, ports):
    tables = ['[[node]]\nname = "host"\n'] + [
        f'[[node]]\nname = "w{i}"\naddress = "127.0.0.1:{port}"\n' for i, port in enumerate(ports)
    ]
    path.write_text("".join(tables))
    return path


def test_the_commands_shard_serve_and_survive_a_killed_worker(tiny, tmp_path, capsys):
    key = tmp_path / "cluster.pem"
    assert run(["llm", "key", str(key)]) == 0
    with Children(tmp_path / "logs") as children:
        ports = []
        for name in ("w0", "w1"):
            command = edge_agent(
                "llm-worker",
                "--listen",
                "127.0.0.1:0",
                "--key",
                str(key),
                "--store",
                str(tmp_path / name),
                "--threads",
                "1",
            )
            ports.append(children.start(name, command, ready="listens on").rsplit(":", 1)[1])
        nodes = write_nodes(tmp_path / "nodes.toml", ports)
        out = str(tmp_path / "shards")
        assert run(["llm", "plan", str(tiny.folder), "--nodes", str(nodes)]) == 0
        printed = capsys.readouterr().out
        assert "alone is faster" in printed
        assert "shares by capability (host 1, w0 1, w1 1)" in printed
        assert run(["llm", "shard", str(tiny.folder), "--nodes", str(nodes), "--out", out, "--always", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["bytes"]) == 3
        command = headtail(
            "llm",
            "serve",
            out,
            "--nodes",
            str(nodes),
            "--key",
            str(key),
            "--port",
            "0",
            "--context",
            "200",
            "--threads",
            "1",
        )
        line = children.start("server", command, ready="serving ")
        url = re.search(r"http://\S+", line).group().removesuffix("/v1")
        prompt = "Once upon"
        encoded = Text(Path(out)).encode(prompt)
        wanted = Text(Path(out)).decode(greedy(tiny.model, encoded, 60))
        pieces = []
        for chunk in client(url).completions.create(
            model="m", prompt=prompt, max_tokens=60, temperature=0, stream=True
        ):
            pieces.append(chunk.choices[0].text)
            if len(pieces) == 3:
                children.stop("w0", kill=True)
        assert "".join(pieces) == wanted
        health = json.loads(urllib.request.urlopen(f"{url}/health").read())
        assert [node["alive"] for node in health["nodes"]] == [True, False, True]


def test_shard_cuts_for_one_device_where_that_is_faster(tiny, tmp_path):
    nodes = write_nodes(tmp_path / "nodes.toml", [1])
    assert run(["llm", "shard", str(tiny.folder), "--nodes", str(nodes), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "rank1.bin").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "node"),
        ('[[node]]\nname = "a"\n[[node]]\nname = "a"\naddress = "h:1"\n', "distinct"),
        ('[[node]]\nname = "a"\n[[node]]\nname = "b"\n', "host:port"),
        ('[[node]]\nname = "a"\nmemory_limit = "lots"\n', "512MB"),
        ('[[node]]\nname = "a"\nspeed = 3\n', "speed"),
    ],
)
def test_nodes_files_that_make_no_sense_are_named(text, message, tiny, tmp_path, capsys):
    (tmp_path / "nodes.toml").write_text(text)
    assert run(["llm", "plan", str(tiny.folder), "--nodes", str(tmp_path / "nodes.toml")]) == 1
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_named(tiny, tmp_path, capsys):
    (tmp_path / "nodes.toml").write_text('[[node]]\nname = "host"\n')
    assert (
        run(["llm", "shard", str(tiny.folder), "--nodes", str(tmp_path / "nodes.toml"), "--out", str(tmp_path / "s")])
        == 0
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["llm", "serve", str(tmp_path / "s"), "--port", str(taken.getsockname()[1])]) == 1
    assert "Choose another --port" in capsys.readouterr().err
    assert run(["llm", "serve", str(tmp_path / "s"), "--port", "99999"]) == 1
    assert "Choose another --port" in capsys.readouterr().err
    assert run(["llm", "trace", str(tmp_path / "s"), "--out", str(tmp_path / "none" / "t.json")]) == 1
    assert "Give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queue", "-1"], "--queue of at least 0, found -1"),
        (["--lookup", "-3"], "--lookup of at least 0, found -3"),
        (["--drafts", "-2"], "--drafts of at least 1, found -2"),
        (["--threads", "0"], "--threads of at least 1, found 0"),
        (["--slots", "100000000"], "--slots of at most 1024"),
        (["--deadline-s", "nan"], "--deadline-s above 0"),
    ],
)
def test_options_of_serve_that_make_no_sense_are_named(options, message, tiny, tmp_path, capsys):
    (tmp_path / "nodes.toml").write_text('[[node]]\nname = "host"\n')
    shards = str(tmp_path / "s")
    assert run(["llm", "shard", str(tiny.folder), "--nodes", str(tmp_path / "nodes.toml"), "--out", shards]) == 0
    assert run(["llm", "serve", shards, "--port", "99999", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_worker_with_no_threads_is_named(key_file, tmp_path):
    with pytest.raises(PartitionError, match="--threads of at least 1, found 0"):
        run_worker(listen="127.0.0.1:0", key_file=key_file, store=tmp_path, memory_limit=None, threads=0)


def test_the_worker_needs_no_torch_to_say_what_is_missing():
    code = "import sys; sys.modules['torch'] = None; from edge_runtime.cli import main; main(['llm-worker', '--listen', 'h:1', '--key', 'k'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "headtail[llm]" in done.stderr
