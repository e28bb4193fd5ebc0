"""Text of a shard set: prompts whole, whatever a tokenizer.json, a template or a client brings."""

import gc
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from orchestrator.tensor_parallel import chat_template
from orchestrator.tensor_parallel import template_child as child
from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.errors import ContextLengthError, PromptError, TokenizerError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from orchestrator.tensor_parallel.text import Text


def sharded(tiny, folder):
    shard_checkpoint(open_checkpoint(tiny.folder), (Node(name="a"),), folder)
    return folder


def test_truncation_and_padding_that_a_training_script_stored_are_not_applied(tiny, tmp_path):
    plain = Text(sharded(tiny, tmp_path))
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_truncation(8)
    stored.enable_padding(length=8, pad_id=3)
    stored.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path)
    for prompt in ("ab", "a prompt of more than eight tokens"):
        assert text.encode(prompt) == plain.encode(prompt)


def counting(text):
    """The tokenizer, which notes the characters that it is given."""
    inner, seen = text._tokenizer, []

    class Counting:
        def encode(self, piece, **options):
            seen.append(len(piece))
            return inner.encode(piece, **options)

    text._tokenizer = Counting()
    return seen


@pytest.mark.parametrize("given", [None, 64])
@pytest.mark.parametrize("prompt", ["words that never end ", "\N{GRINNING FACE}", "x"])
def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenised_whole(prompt, given, tiny, tmp_path):
    text = Text(sharded(tiny, tmp_path), context=given)
    seen = counting(text)
    for ask in (text.encode, lambda content: text.chat([{"role": "user", "content": content}])):
        with pytest.raises(ContextLengthError, match=f"1 to {(given or 256) - 1} tokens, found far more"):
            ask(prompt * (4 << 20))
    assert sum(seen) < 1 << 16


def test_long_texts_that_fit_are_tokenised_whole(tiny, tmp_path):
    text = Text(sharded(tiny, tmp_path), context=40_000)
    prompt = "abc " * 9_000
    assert text.encode(prompt) == text._tokenizer.encode(prompt).ids
    assert len(text.encode("x" * 50_000)) == 50_000  # a little too long: the exact limit is the generator's


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ [1][3] + 1 }}",
        "{{ messages[0].content.format() }}",
        "{{ messages[0].content.nothing() }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% endfor %}",
    ],
)
def test_a_chat_template_that_fails_is_a_named_error(template, tiny, tmp_path):
    (sharded(tiny, tmp_path) / "chat_template.jinja").write_text(template)
    with pytest.raises(PromptError, match="chat template takes, found: "):
        Text(tmp_path).chat([{"role": "user", "content": "{0}{1}"}])


def chat_with(template, folder):
    (folder / "chat_template.jinja").write_text(template)
    return Text(folder).chat([{"role": "user", "content": "ab"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**9 }}",
        "{{ ('%' ~ 10**9 ~ 'd') % 1 }}",
        "{{ messages[0].content.ljust(10**9) }}",
        "{% set n = namespace(s='ab') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    ],
)
def test_a_chat_template_that_wants_all_memory_is_a_named_error(template, tiny, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PromptError, match="chat template takes, found: more than 512 MiB of memory"):
        chat_with(template, sharded(tiny, tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (256 << 10)  # KiB


def test_a_chat_template_that_writes_too_much_is_a_named_error(tiny, tmp_path):
    with pytest.raises(PromptError, match=r"found: 17000000 characters come of it"):
        chat_with("{{ 'a' * 17000000 }}", sharded(tiny, tmp_path))


def test_a_chat_template_that_does_not_end_is_a_named_error_and_the_next_conversation_is_rendered(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        chat_template, "_CHILD",
        [sys.executable, "-c", f"import {child.__name__} as child; child.MOST_SECONDS = 1; child.main()"],
    )  # fmt: skip
    (sharded(tiny, tmp_path) / "chat_template.jinja").write_text(
        "{% if messages|length == 1 %}{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}{% endif %}-"
    )
    text, message = Text(tmp_path), {"role": "user", "content": "ab"}
    with pytest.raises(PromptError, match="found: too much time is wanted"):
        text.chat([message])
    assert text.decode(text.chat([message, message])) == "-"


def test_a_process_that_was_killed_is_begun_again_and_ends_with_its_text(tiny, tmp_path):
    (sharded(tiny, tmp_path) / "chat_template.jinja").write_text("{{ messages[0].content }}")
    text, message = Text(tmp_path), {"role": "user", "content": "\N{GRINNING FACE}\n"}
    wanted = text.encode(message["content"], add_special=False)
    assert text.chat([message]) == wanted
    first = text._template._child
    first.kill()
    first.wait()
    assert text.chat([message]) == wanted
    assert first.stdin.closed
    assert first.stdout.closed
    second = text._template._child
    assert second.poll() is None
    del text
    gc.collect()
    assert second.poll() == 0


def test_modules_in_the_working_directory_are_not_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('run from the working directory')")
    monkeypatch.chdir(tmp_path)
    assert chat_with("ab", sharded(tiny, tmp_path / "shards")) == Text(tmp_path / "shards").encode(
        "ab", add_special=False
    )


def test_what_computes_goes_before_a_chat_template(tiny, tmp_path):
    """Also where the kernel shares out time among sessions first: the process leads one of its own."""
    (sharded(tiny, tmp_path) / "chat_template.jinja").write_text("ab")
    text = Text(tmp_path)
    text.chat([])
    pid = text._template._child.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    enabled = Path("/proc/sys/kernel/sched_autogroup_enabled")
    if enabled.is_file() and enabled.read_text() == "1\n":
        assert Path(f"/proc/{pid}/autogroup").read_text().endswith("nice 10\n")


def test_chat_templates_write_json_and_mark_turns_as_transformers_lets_them():
    template = chat_template.ChatTemplate(
        "{% for one in messages %}{% generation %}{{ one | tojson(indent=2, sort_keys=true) }}{% endgeneration %}{% endfor %}"
    )
    values = {"messages": [{"role": "user", "content": "<\u00e4>"}]}
    assert template.render(values) == '{\n  "content": "<\u00e4>",\n  "role": "user"\n}'


def test_half_a_character_in_a_chat_template_is_a_named_error(tiny, tmp_path):
    with pytest.raises(PromptError, match=r"found: half a character, '\\ud83d'"):
        chat_with(r"a{{ '\ud83d' }}", sharded(tiny, tmp_path))
    whole = chat_with(r"a{{ '\ud83d\ude00' }}", tmp_path)
    assert whole == Text(tmp_path).encode("a\N{GRINNING FACE}", add_special=False)


ASKING = """
import sys
from orchestrator.tensor_parallel import chat_template
code = (
    "import os, signal, sys\\nfrom orchestrator.tensor_parallel import template_child as child\\n"
    "child.MOST_SECONDS = 1\\n"
    "def answer(request):\\n with open(sys.argv[1], 'w') as said: said.write(str(os.getpid()))\\n while True: pass\\n"
    "child._answer = answer\\nchild.main()"
)
chat_template._CHILD = [sys.executable, "-c", code, sys.argv[1]]
chat_template.ChatTemplate("x").render({})
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_outlives_a_server_that_is_killed_by_no_more_than_its_time(tmp_path, number):
    os.mkfifo(tmp_path / "said")
    command = [sys.executable, "-c", ASKING, str(tmp_path / "said")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as program:
        ended = os.pidfd_open(int((tmp_path / "said").read_text()))
        program.send_signal(number)
    assert select.select([ended], [], [], 30)[0], "it runs on"
    os.close(ended)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat_template.jinja", b"\xff"),
        ("tokenizer.json", b"{}"),
        ("special_tokens.json", b"[]"),
        ("special_tokens.json", b'{"end_ids": [[1]]}'),
    ],
)
def test_a_damaged_tokenizer_of_a_set_is_a_named_error(name, data, tiny, tmp_path):
    (sharded(tiny, tmp_path) / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=r"Wanted a tokenizer, found .* Shard the checkpoint again"):
        Text(tmp_path)
