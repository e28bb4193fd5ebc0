import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.fleet.errors import ConflictError
from orchestrator.fleet.state import (
    ENDED,
    Ordered,
    Reached,
    Revert,
    Rollout,
    RolloutSpec,
    Stage,
    TargetChanged,
    Update,
    apply,
    apply_all,
    begin,
    event_of,
    failure,
    plan,
    progress,
    stage_sizes,
)

CANARY = (Stage(share=0.05, soak_s=10), Stage(share=1.0, soak_s=0))


def start(count, *, reachable=True, **spec):
    values = {"version": "m@2", "to": "all", "stages": CANARY, **spec}
    rollout = Rollout(id="r1", spec=RolloutSpec(**values), created_ms=0)
    return begin(rollout, [(f"default/d{index}", reachable) for index in range(count)])


def settle(state, now_ms, outcome=lambda _device: "succeeded"):
    """Carry out what is planned, devices answering at once, until nothing is left to do."""
    for _ in range(10_000):
        actions = plan(state, now_ms)
        if not actions:
            return state
        state = apply_all(state, [event_of(action, now_ms) for action in actions])
        for action in actions:
            if isinstance(action, Update):
                state = apply(state, TargetChanged(action.device, outcome(action.device), now_ms, "bad"))
            elif isinstance(action, Revert):
                state = apply(state, TargetChanged(action.device, "reverted", now_ms))
    raise AssertionError("never settles")


def states(state):
    return [target.state for target in state.targets.values()]


def test_a_canary_soaks_before_the_rest_is_touched():
    state = settle(start(100), 0)
    assert state.rollout.phase == "soaking"
    assert states(state).count("succeeded") == 5
    assert settle(state, 9_999) == state
    done = settle(state, 10_000)
    assert done.rollout.phase == "done"
    assert set(states(done)) == {"succeeded"}
    assert plan(done, 20_000) == []


@given(count=st.integers(1, 300), share=st.floats(0.01, 1.0))
def test_a_bad_version_touches_the_canary_alone_and_is_reverted_there(count, share):
    state = settle(start(count, stages=(Stage(share=share), Stage(share=1.0))), 0, lambda _: "failed")
    assert state.rollout.phase == "rolled_back"
    touched = sum(name != "pending" for name in states(state))
    assert touched <= share * count + 1
    assert states(state).count("reverted") == touched
    assert "failed in stage 1" in state.rollout.reason
    assert {target.error for target in state.targets.values() if target.state == "reverted"} == {"bad"}, (
        "it is kept why"
    )


def test_failures_count_only_with_the_minimum_sample_and_the_share():
    state = start(100, abort_share=0.5, minimum_sample=4, stages=(Stage(count=10), Stage(share=1.0)))
    devices = list(state.targets)
    state = apply_all(state, [TargetChanged(device, "updating", 0) for device in devices[:10]])
    state = apply_all(state, [TargetChanged(device, "failed", 0, "x") for device in devices[:3]])
    assert failure(state) is None, "three have ended, four are needed"
    state = apply(state, TargetChanged(devices[3], "succeeded", 0))
    assert "3 of 4" in failure(state)
    state = apply_all(state, [TargetChanged(device, "succeeded", 0) for device in devices[4:7]])
    assert failure(state) is None, "three of seven are less than half"


def test_a_canary_smaller_than_the_sample_can_still_fail():
    state = settle(start(20, minimum_sample=5, stages=(Stage(count=1), Stage(share=1.0))), 0, lambda _: "failed")
    assert state.rollout.phase == "rolled_back"
    assert states(state).count("pending") == 19


def test_devices_out_of_reach_get_the_order_but_do_not_hold_up_the_others():
    state = start(100, minimum_sample=2)
    state = apply_all(state, [Reached(device, reachable=False) for device in list(state.targets)[:2]])
    actions = plan(state, 0)
    assert len(actions) == 5
    near = [action.device for action in actions[:3]]
    state = apply_all(state, [event_of(action, 0) for action in actions])
    state = apply_all(state, [TargetChanged(device, "succeeded", 0) for device in near])
    state = settle(state, 0)
    assert state.rollout.phase == "soaking"


def test_devices_between_two_agents_hold_up_their_stage_and_a_rollback_for_a_while():
    state = start(100, minimum_sample=2, restart_s=120)
    actions = plan(state, 0)
    state = apply_all(state, [event_of(action, 0) for action in actions])
    first, *others = [action.device for action in actions]
    state = apply_all(state, [TargetChanged(device, "succeeded", 1) for device in others])
    state = apply(state, Reached(first, reachable=False))
    assert plan(state, 119_999) == []
    assert settle(state, 120_000).rollout.phase == "soaking"
    state = apply(state, Ordered("rollback", 10_000))
    state = apply_all(state, [event_of(action, 10_000) for action in plan(state, 10_000)])
    state = apply_all(state, [TargetChanged(device, "reverted", 10_001) for device in others])
    assert plan(state, 129_999) == []
    assert settle(state, 130_000).rollout.phase == "rolled_back"


def test_the_last_stage_waits_for_devices_out_of_reach_until_it_gives_up():
    state = start(3, reachable=False, stages=(Stage(share=1.0, soak_s=0),), give_up_s=100)
    state = apply_all(state, [event_of(action, 0) for action in plan(state, 0)])
    assert plan(state, 99_999) == []
    done = settle(state, 100_000)
    assert done.rollout.phase == "done"
    assert set(states(done)) == {"skipped"}


def test_no_more_than_max_parallel_are_updated_at_once():
    state = start(50, stages=(Stage(share=1.0),), max_parallel=7)
    actions = plan(state, 0)
    assert len(actions) == 7
    state = apply_all(state, [event_of(action, 0) for action in actions])
    assert plan(state, 0) == []
    state = apply(state, TargetChanged(actions[0].device, "succeeded", 0))
    assert len(plan(state, 0)) == 1


def test_pause_holds_approval_waits_and_rollback_takes_back():
    stages = (Stage(count=1, soak_s=0, approval=True), Stage(share=1.0, soak_s=0))
    state = settle(start(4, stages=stages), 0)
    assert state.rollout.phase == "awaiting_approval"
    with pytest.raises(ConflictError, match="approve"):
        apply(settle(apply(state, Ordered("approve", 0)), 0), Ordered("approve", 0))
    state = apply(apply(state, Ordered("pause", 0)), Ordered("approve", 0))
    assert plan(state, 0) == []
    state = apply(state, Ordered("resume", 0))
    assert len(plan(state, 0)) == 3
    state = settle(apply(settle(state, 0), Ordered("rollback", 5, "seen on the dashboard")), 5)
    assert state.rollout.phase == "rolled_back"
    assert set(states(state)) == {"reverted"}
    assert state.rollout.reason == "seen on the dashboard"
    with pytest.raises(ConflictError, match="rolled back"):
        apply(state, Ordered("rollback", 6))


def test_late_news_of_a_withdrawn_order_changes_nothing():
    state = apply(start(2, stages=(Stage(share=1.0),)), TargetChanged("default/d0", "succeeded", 0))
    assert states(state) == ["pending", "pending"]
    assert apply(state, TargetChanged("nobody", "failed", 0)).targets == state.targets


@given(
    count=st.integers(1, 60),
    fates=st.lists(st.sampled_from(["succeeded", "failed"]), min_size=60, max_size=60),
    stages=st.lists(st.floats(0.01, 1.0), max_size=4),
    minimum=st.integers(1, 8),
)
def test_every_rollout_ends_and_no_device_is_left_in_between(count, fates, stages, minimum):
    shape = tuple(Stage(share=share, soak_s=0) for share in (*sorted(stages), 1.0))
    state = settle(
        start(count, stages=shape, minimum_sample=minimum), 0, lambda device: fates[int(device.split("/d")[1])]
    )
    assert state.rollout.phase in ENDED
    allowed = {"succeeded", "failed"} if state.rollout.phase == "done" else {"pending", "reverted"}
    assert set(states(state)) <= allowed


def test_a_stage_without_devices_of_its_own_is_not_soaked():
    state = start(1, stages=(Stage(share=0.05, soak_s=0), Stage(share=0.25, soak_s=60), Stage(share=1.0)))
    assert settle(state, 0).rollout.phase == "done"


def test_stages_must_grow_to_all_devices():
    assert stage_sizes(CANARY, 1000) == [50, 1000]
    assert stage_sizes((Stage(count=1), Stage(share=1.0)), 1) == [1, 1]
    for wrong in ((Stage(share=0.5),), (Stage(share=1.0), Stage(count=1)), (Stage(),), (Stage(count=1, share=1.0),)):
        with pytest.raises(ConflictError):
            stage_sizes(wrong, 10)
    with pytest.raises(ConflictError, match="0 devices"):
        stage_sizes(CANARY, 0)


def test_progress_counts_and_tells_the_time_left():
    state = start(100)
    assert progress(state, 1000).left_s is None, "nothing has ended: nobody knows"
    state = apply_all(state, [event_of(action, 0) for action in plan(state, 0)])
    state = apply_all(state, [TargetChanged(device, "succeeded", 5000) for device in list(state.targets)[:5]])
    seen = progress(state, 5000)
    assert (seen.touched, seen.ended, seen.total) == (5, 5, 100)
    assert seen.left_s == pytest.approx(5 + 10), "the others at once, in as many seconds, and ten to soak"
    one_by_one = start(100, max_parallel=1)
    for at_ms in (2500, 5000):
        one_by_one = apply_all(
            one_by_one, [event_of(action, at_ms - 2500) for action in plan(one_by_one, at_ms - 2500)]
        )
        busy = [device for device, target in one_by_one.targets.items() if target.state == "updating"]
        one_by_one = apply_all(one_by_one, [TargetChanged(busy[0], "succeeded", at_ms)])
    assert progress(one_by_one, 5000).left_s == pytest.approx(98 * 2.5 + 10)
    assert progress(apply(state, Ordered("pause", 0)), 5000).left_s is None
    assert progress(settle(state, 50_000), 50_000).left_s is not None


def test_a_rollout_survives_its_own_document():
    rollout = start(3).rollout
    assert msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout) == rollout
