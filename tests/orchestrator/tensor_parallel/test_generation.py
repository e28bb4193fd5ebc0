import contextlib
import itertools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_llm_serving import ToyEngine, chi_square
from orchestrator.tensor_parallel.errors import BusyError, CancelledError, NodesLostError, PromptError
from orchestrator.tensor_parallel.generation import Generator, generate
from orchestrator.tensor_parallel.jobs import Request
from orchestrator.tensor_parallel.lookup import Pace, guess
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.sampling import SamplingOptions, choose, probabilities

PROMPTS = [
    [int(t) for t in torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(size))]
    for size in (3, 50, 7, 21)
]


def greedy(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def request(prompt, count=12, **options):
    return Request(prompt=tuple(prompt), max_tokens=count, ignore_end=True, **options)


@pytest.fixture
def generator(cluster, tiny):
    with_engine = Generator(cluster(tiny.folder, ranks=2).engine, None)
    yield with_engine
    with_engine.close()


def all_at_once(generator, requests):
    results = {}
    threads = [
        threading.Thread(target=lambda i=i, r=r: results.update({i: generate(generator, r)}))
        for i, r in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[i] for i in range(len(requests))]


def test_more_requests_than_slots_at_once_give_the_tokens_of_each_alone(generator, tiny):
    wanted = [greedy(tiny.model, prompt, 12) for prompt in PROMPTS]
    found = all_at_once(generator, [request(prompt) for prompt in PROMPTS * 2])
    assert found == wanted * 2
    assert generator.counters.steps < 8 * 12  # they shared steps


def test_prompt_lookup_gives_the_same_tokens_in_fewer_steps(generator, tiny):
    prompt = PROMPTS[2] * 6
    plain = generate(generator, request(prompt, 40))
    steps = generator.counters.steps
    assert generate(generator, request(prompt, 40, lookup=6)) == plain == greedy(tiny.model, prompt, 40)
    assert generator.counters.accepted_tokens > 0
    assert generator.counters.steps - steps < steps


@pytest.mark.parametrize("sampling", [SamplingOptions(), SamplingOptions(temperature=0.9, seed=3)])
@pytest.mark.parametrize("collective", ["mesh", "star"])
def test_several_guesses_checked_at_once_change_no_token(sampling, collective, cluster, tiny, monkeypatch):
    running = cluster(tiny.folder, ranks=2, collective=collective)
    generator = Generator(running.engine, None)
    plain = generate(generator, request(PROMPTS[0], 30, sampling=sampling))
    steps = generator.counters.steps
    turn = itertools.count()

    def contrived(tokens, *, count, branches):
        """Right for a while in one of three branches, each time another, and wrong in the rest."""
        done = len(tokens) - len(PROMPTS[0])
        right = [*plain[done : done + min(count, 4)]]
        number = next(turn)
        right[2:] = [(token + number % 2) % 256 for token in right[2:]]
        wrong = [[(token + 1 + i) % 256 for token in right] for i in range(2)]
        wrong.insert(number % 3, right)
        return tuple(tuple(one) for one in wrong)

    monkeypatch.setattr("orchestrator.tensor_parallel.generation.guess", contrived)
    try:
        found = generate(generator, request(PROMPTS[0], 30, sampling=sampling, lookup=4, drafts=3))
        assert found == plain
        assert generator.counters.steps - steps < 20
        assert generator.counters.accepted_tokens > 10
        assert generate(generator, request([*PROMPTS[0], *found], 5, sampling=sampling)) == generate(
            generator, request([*PROMPTS[0], *found], 5, sampling=sampling)
        )
        longer = [*PROMPTS[0], *found[:20]]  # what it reuses of the cache was put in its place
        assert generate(generator, request(longer, 5)) == greedy(tiny.model, longer, 5)
    finally:
        generator.close()


def test_sampling_with_guesses_keeps_the_distribution():
    warm = SamplingOptions(temperature=0.7, seed=1)
    kept, right = chi_square(warm, drafts=3, tokens=4000)
    assert kept > 0.01
    assert right > 0.2
    other, _ = chi_square(warm, drafts=3, tokens=4000, against=SamplingOptions(temperature=1.0))
    assert other < 1e-6  # the test sees a distribution that is not kept


def test_requests_beyond_the_queue_are_refused():
    engine, begun, go_on = ToyEngine(50, RunSettings(slots=1)), threading.Event(), threading.Event()
    step, ended = engine.step, threading.Event()

    def slowly(pieces):
        begun.set()
        assert go_on.wait(30)
        return step(pieces)

    engine.step = slowly
    generator = Generator(engine, None, queue=0)
    generator.submit(request([1, 2, 3]), lambda event: ended.set() if event.last else None)  # a slot is free
    for _ in range(2):
        with pytest.raises(BusyError, match=r"found 1 requests for 1 slots and 0 places.*--queue"):
            generator.submit(request([1, 2, 3]), print)
        assert begun.wait(30)  # refused while it waits and while it runs
    go_on.set()
    assert ended.wait(30)
    generator.close()


def test_a_request_that_is_cancelled_while_it_waits_leaves_its_place_to_another():
    engine = ToyEngine(50, RunSettings(slots=1, context=100_000))
    generator = Generator(engine, None, queue=1)
    begun, ended, events = threading.Event(), threading.Event(), []
    running = generator.submit(request([1, 2, 3], 90_000), lambda event: begun.set())
    assert begun.wait(20)
    waiting = generator.submit(request([1, 2, 3]), lambda event: (events.append(event), ended.set()))
    with pytest.raises(BusyError):
        generator.submit(request([1, 2, 3]), print)
    waiting.cancel()
    assert ended.wait(20)
    assert isinstance(events[0].error, CancelledError)
    assert generator.load == (1, 0)
    generator.submit(request([1, 2, 3]), lambda event: None)
    running.cancel()
    generator.close()


def test_a_second_turn_reuses_the_cache_of_the_first(generator, tiny):
    first = generate(generator, request(PROMPTS[1], 8))
    longer = [*PROMPTS[1], *first, 65, 66]
    assert generate(generator, request(longer, 8)) == greedy(tiny.model, longer, 8)
    assert generator.counters.reused_tokens >= len(PROMPTS[1])


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(generator):
    def draw(seed):
        return generate(generator, request(PROMPTS[0], 20, sampling=SamplingOptions(temperature=1.5, seed=seed)))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_cancelled_request_ends_and_its_slot_is_free_again(generator, tiny):
    events = []
    ended = threading.Event()

    def take(event):
        events.append(event)
        job[0].cancel()
        if event.last:
            ended.set()

    job = [None]
    job[0] = generator.submit(request(PROMPTS[0], 100), take) or None
    assert ended.wait(30)
    assert isinstance(events[-1].error, CancelledError)
    assert all_at_once(generator, [request(p, 3) for p in PROMPTS]) == [greedy(tiny.model, p, 3) for p in PROMPTS]


@pytest.mark.parametrize("prompt", [[], list(range(128))])
def test_prompts_that_do_not_fit_are_refused(generator, prompt):
    with pytest.raises(PromptError, match="prompt of 1 to 127 tokens"):
        generator.submit(request(prompt), print)


def test_the_context_ends_a_request_that_would_go_on(generator):
    assert len(generate(generator, request(PROMPTS[1], 1000))) == 128 - len(PROMPTS[1])


@pytest.mark.parametrize("collective", ["mesh", "star"])
def test_a_worker_lost_in_mid_generation_changes_no_token(collective, cluster, tiny):
    running = cluster(tiny.folder, ranks=3, collective=collective)
    generator = Generator(running.engine, None)
    seen = []

    def stop_one(event):
        seen.extend(event.tokens)
        if len(seen) == 5:
            for link in running.engine.epoch.links.values():
                if link.peer == "n1":
                    running.workers[0].stop()
                    link.close()

    try:
        found = generate(generator, request(PROMPTS[1], 20), on_event=stop_one)
        assert found == greedy(tiny.model, PROMPTS[1], 20)
        assert [member.name for member in running.engine.epoch.members] == ["n0", "n2"]
        assert generator.counters.restarts >= 1
    finally:
        generator.close()


def test_losing_more_than_the_spares_is_a_named_error_and_a_later_request_asks_again(cluster, tiny):
    running = cluster(tiny.folder, ranks=2, spares=0)
    generator = Generator(running.engine, None)
    try:
        generate(generator, request(PROMPTS[0], 2))
        running.workers[0].stop()
        for _ in range(40):  # until the worker has ended, requests are still answered
            with contextlib.suppress(NodesLostError):
                generate(generator, request(PROMPTS[0], 2))
                continue
            break
        with pytest.raises(NodesLostError, match="n1 again, or shard with more --spares"):
            generate(generator, request(PROMPTS[0], 2))
        assert generator.broken
    finally:
        generator.close()


@given(tokens=st.lists(st.integers(0, 5), min_size=0, max_size=40), count=st.integers(1, 6), branches=st.integers(1, 3))
def test_guesses_are_what_followed_the_same_tokens_before(tokens, count, branches):
    found = guess(tokens, count=count, branches=branches)
    assert len(found) <= branches
    assert len({one[0] for one in found}) == len(found)
    assert len({len(one) for one in found}) <= 1
    places = [i for i in range(1, len(tokens)) if tokens[i - 1] == tokens[-1]]
    for one in found:
        assert 0 < len(one) <= count
        assert any(tuple(tokens[i : i + len(one)]) == one for i in places)
    if branches == 1 and places:
        assert found


def test_the_pace_follows_how_often_guesses_are_right():
    pace = Pace(8)
    pace.note(8, 0)
    assert pace.now == 1
    for guessed in (1, 2, 4, 8):
        pace.note(guessed, guessed)
    assert pace.now == 8
    pace.note(8, 3)
    assert pace.now == 4


@given(seed=st.integers(0, 1000), top_k=st.integers(0, 8), top_p=st.floats(0.05, 1), min_p=st.floats(0, 0.9))
def test_what_is_drawn_is_a_distribution_over_what_the_options_leave(seed, top_k, top_p, min_p):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed))
    options = SamplingOptions(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    found = probabilities(logits, options)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert int(found.argmax()) == int(logits.argmax())
    left = int((found > 0).sum())
    assert left >= 1
    assert not top_k or left <= top_k
    assert float(found[found > 0].min()) >= min_p * float(found.max()) - 1e-6


def test_the_repetition_penalty_turns_the_choice_away_from_what_was_said():
    logits = torch.tensor([2.0, 1.5, -1.0])
    assert choose(logits, SamplingOptions(repetition_penalty=2.0), [0], torch.Generator()) == 1


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 1.5}, {"min_p": float("nan")}, {"repetition_penalty": 0.0}]
)
def test_sampling_options_without_a_meaning_are_refused(options):
    with pytest.raises(PromptError, match=next(iter(options))):
        SamplingOptions(**options).check()
