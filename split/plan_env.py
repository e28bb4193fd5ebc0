"""The planner as an environment with `reset` and `step`, so that searches can be compared with it on equal terms.

After ArchGym (Krishnan et al. 2023, arXiv:2306.08888): an action is one index for each parameter, the reward is what the
planner maximises, every evaluation is logged. Here an episode is a budget of evaluations.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from device_profiles.link import Link
from split.plan import Goal, PlanError, Power, Priced, broken_rule, price
from split.plan_heads import Candidate

Action = tuple[int, int]  # where (candidates grouped by the same tensors), how (which of the group)


@dataclass(frozen=True)
class Observation:
    """What an agent sees: the link, what is wanted, how many evaluations are left, and the best reward so far."""

    link: Link
    goal: Goal
    left: int
    best_reward: float


@dataclass
class PlanEnv:
    """Evaluations of single candidates under a budget.

    The reward is minus the objective (ms, mJ or bytes), or the accuracy; -inf for a candidate that breaks a constraint.

    Args:
        candidates: As for `make_plan`.
        link: Over which they are priced.
        goal: As for `make_plan`.
        power: As for `make_plan`.
        budget: Steps of an episode.
    """

    candidates: Sequence[Candidate]
    link: Link
    goal: Goal
    power: Power | None = None
    budget: int = 64
    log: list[tuple[Action, float]] = field(init=False, default_factory=list)
    _groups: list[list[Candidate]] = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[object, list[Candidate]] = {}
        for candidate in self.candidates:
            groups.setdefault(candidate.tensors or candidate.choice.kind, []).append(candidate)
        if not groups or self.budget < 1:
            raise PlanError(f"Wanted candidates and a budget, found {len(self.candidates)} and {self.budget}.")
        self._groups = list(groups.values())

    @property
    def shape(self) -> tuple[int, int]:
        """How many values each part of an action has; the second is taken modulo the group's size."""
        return len(self._groups), max(len(group) for group in self._groups)

    def reset(self) -> Observation:
        """Begin an episode."""
        self.log = []
        return self._observe()

    def step(self, action: Action) -> tuple[Observation, float, bool, Priced]:
        """Evaluate one candidate.

        Returns:
            Observation, reward, whether the episode is over, and the priced candidate.

        Raises:
            PlanError: The episode is over, or the action is out of range.
        """
        if len(self.log) >= self.budget:
            raise PlanError(f"Wanted at most {self.budget} steps, found one more. Call reset().")
        where, how = action
        if not 0 <= where < self.shape[0] or not 0 <= how < self.shape[1]:
            raise PlanError(f"Wanted an action below {self.shape}, found {action}.")
        group = self._groups[where]
        priced = price(group[how % len(group)], self.link, self.power)
        reward = float("-inf") if broken_rule(priced, self.goal) else -self._objective(priced)
        self.log.append((action, reward))
        return self._observe(), reward, len(self.log) >= self.budget, priced

    def _objective(self, priced: Priced) -> float:
        values = {
            "latency": priced.p50_ms,
            "p95": priced.p95_ms,
            "energy": priced.energy_mj,
            "uplink": priced.uplink_bytes,
            "accuracy": -(priced.candidate.accuracy or 0.0),
        }
        value = values[self.goal.objective]
        if value is None:
            raise PlanError("Wanted idle and active power for the least energy, found none.")
        return value

    def _observe(self) -> Observation:
        best = max((reward for _, reward in self.log), default=float("-inf"))
        return Observation(self.link, self.goal, self.budget - len(self.log), best)


def random_search(env: PlanEnv, *, seed: int) -> float:
    """Best reward of uniformly random actions over one episode: the honest baseline."""
    rng = random.Random(seed)
    seen, done = env.reset(), False
    while not done:
        seen, _, done, _ = env.step((rng.randrange(env.shape[0]), rng.randrange(env.shape[1])))
    return seen.best_reward


def genetic_search(env: PlanEnv, *, seed: int, population: int = 8, mutation: float = 0.3) -> float:
    """Best reward of a small genetic search over one episode: tournament of two, crossover, mutation by small steps."""
    rng = random.Random(seed)
    seen, done = env.reset(), False
    while not done:
        if len(env.log) < population:
            action = (rng.randrange(env.shape[0]), rng.randrange(env.shape[1]))
        else:
            best = sorted(env.log, key=lambda one: -one[1])[:population]
            mother, father = (max(rng.sample(best, 2), key=lambda one: one[1])[0] for _ in range(2))
            where, how = mother[0], father[1]
            if rng.random() < mutation:
                where = min(max(where + rng.choice((-3, -2, -1, 1, 2, 3)), 0), env.shape[0] - 1)
            if rng.random() < mutation:
                how = rng.randrange(env.shape[1])
            action = (where, how)
        seen, _, done, _ = env.step(action)
    return seen.best_reward
