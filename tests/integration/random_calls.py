"""A process that calls everything that writes, at random, for some seconds: see test_lock_order.py.

python tests/integration/random_calls.py SEED SECONDS < url
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.errors import BudgetSpent, LeaseLost, SpecError, StudyNotFound
from studies.storage.database import NotThere
from studies.storage.records import Claim, StudyRecord

#: What others may have made of a trial or a study meanwhile.
EXPECTED = (BudgetSpent, KeyError, LeaseLost, NotThere, SpecError, StudyNotFound, UpdateFinishedTrialError)


def spec(name: str) -> StudySpec:
    budget = {"trials": 10_000, "max_failures": 10_000}
    return StudySpec.from_dict({"name": name, "objective": {"path": "tests:objective"}, "budget": budget})


class Caller:
    """One client, who is a worker with several trials, a person, and a script all at once.

    Args:
        storage: where the study is.
        seed: of what is called.
    """

    def __init__(self, storage: PostgresStorage, seed: int) -> None:
        self.storage = storage
        self.dice = random.Random(seed)
        self.worker = f"w{seed}"
        self.record = self.join()
        self.claims: list[Claim] = []
        self.calls: Mapping[Callable[[], object], int] = {
            self.claim: 20,
            self.write: 40,
            self.finish: 10,
            self.requeue: 6,
            self.checkpoint: 6,
            self.beat: 10,
            self.reap: 3,
            self.cancel: 5,
            self.extend: 5,
            self.pause: 2,
            self.enqueue: 5,
            self.attribute: 8,
            self.report: 8,
            self.state: 4,
            self.register: 2,
            self.delete: 1,
        }

    def call(self) -> None:
        """Do one thing."""
        (act,) = self.dice.choices(list(self.calls), list(self.calls.values()))
        with suppress(*EXPECTED):  # that is what such a call is told
            act()

    def mine(self) -> Claim:
        """One of the trials that this client holds, or held."""
        if not self.claims:
            self.claim()
        if not self.claims:
            raise KeyError("nothing to claim")
        return self.dice.choice(self.claims)

    def anyones(self) -> int:
        """The id of a trial that was lately claimed by anybody."""
        rows = self.storage.database.execute(
            "select trial_id from trials where study_id = %(id)s order by trial_id desc limit 30",
            {"id": self.record.study_id},
        )
        return int(self.dice.choice(rows or [{"trial_id": 0}])["trial_id"])

    def claim(self) -> None:
        lease = self.dice.choice([0.0, 0.05, 30.0])
        claim = self.storage.leases.claim(self.record, self.worker, lease)
        if isinstance(claim, Claim):
            self.claims = [*self.claims[-7:], claim]

    def write(self) -> None:
        step = self.dice.randrange(5)
        changes = {
            "reports": [{"step": step, "value": 1.0}],
            "metrics": [{"step": step, "name": name, "value": 1.0} for name in "ab"],
            "user_attrs": [{"key": self.dice.choice("kl"), "value": "1"}],
        }
        self.storage.leases.write(self.mine(), changes, step=step)

    def finish(self) -> None:
        claim = self.mine()
        self.claims.remove(claim)
        state = self.dice.choice(["COMPLETE", "PRUNED", "FAIL"])
        self.storage.leases.finish(claim, state, [1.0] if state == "COMPLETE" else None, {})

    def requeue(self) -> None:
        claim = self.mine()
        self.claims.remove(claim)
        self.storage.leases.requeue(claim, {"user_attrs": [{"key": "k", "value": "2"}]})

    def checkpoint(self) -> None:
        number = self.dice.randrange(1000)
        self.storage.leases.save_checkpoint(
            self.mine(), sequence=number, name=f"{number}", step=1, sha256=b"1", data=b"1"
        )

    def beat(self) -> None:
        self.storage.workers.heartbeat(self.worker)

    def reap(self) -> None:
        others = [f"w{self.dice.randrange(24)}" for _ in range(4)]
        self.storage.workers.reap(others, died_of=self.dice.choice([None, "a signal"]))

    def cancel(self) -> None:
        self.storage.cancel(self.storage.get_trial(self.anyones()))

    def extend(self) -> None:
        finished = self.storage.status(self.record).finished
        self.storage.budgets.extend(self.record, trials=finished + self.dice.choice([1, 3, 10, 10_000]))

    def pause(self) -> None:
        self.storage.budgets.pause(self.record)
        self.storage.budgets.resume(self.record)

    def enqueue(self) -> None:
        self.storage.create_new_trial(
            self.record.study_id, create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": 0.5}})
        )

    def attribute(self) -> None:
        self.storage.set_trial_user_attr(self.anyones(), self.dice.choice("kl"), 3)

    def report(self) -> None:
        self.storage.set_trial_intermediate_value(self.anyones(), self.dice.randrange(5), 2.0)

    def state(self) -> None:
        states = [TrialState.RUNNING, TrialState.FAIL, TrialState.COMPLETE]
        state = self.dice.choice(states)
        self.storage.set_trial_state_values(self.anyones(), state, [1.0] if state == TrialState.COMPLETE else None)

    def register(self) -> None:
        self.storage.workers.register([self.record], worker_id=self.worker, host="host", pid=1, device="cpu")

    def delete(self) -> None:
        try:
            self.storage.delete(self.record)
        finally:
            self.claims = []
            self.join()

    def join(self) -> StudyRecord:
        """Another may have deleted the study, too."""
        for _ in range(100):
            try:
                self.record, _ = self.storage.create_study(spec("study"))
            except StudyNotFound:
                continue
            return self.record
        raise RuntimeError("the study is deleted again and again")


def main() -> None:
    seed, seconds = int(sys.argv[1]), float(sys.argv[2])
    with closing(PostgresStorage(sys.stdin.readline().strip())) as storage:
        caller = Caller(storage, seed)
        end, calls = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            caller.call()
            calls += 1
            if calls % 50 == 0:
                caller.join()
    print(calls)


if __name__ == "__main__":
    main()
