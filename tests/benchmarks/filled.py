"""A study with many finished trials, written straight into Optuna's tables."""

from __future__ import annotations

from contextlib import closing

import optuna
import psycopg2
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage

from studies.storage.url import StorageURL
from tests.benchmarks.arms import suggest


def fill(url: StorageURL, trials: int, steps: int = 20, name: str = "filled") -> None:
    """Create Optuna's tables and the study ``name`` where missing, and fill it with COMPLETE trials.

    Each trial has the four parameters of :func:`suggest`, drawn evenly, always the same, and ``steps`` reports.
    """
    storage = RDBStorage(url.sqlalchemy)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    storage.remove_session()
    storage.engine.dispose()
    given = {"study": study._study_id, "trials": trials, "steps": steps}
    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("select setseed(0.5)")  # what random() draws from here on is always the same
        cursor.execute(_TRIALS, given)
        for param, (distribution, drawn) in _params().items():
            cursor.execute(_PARAM.format(drawn=drawn), {**given, "name": param, "distribution": distribution})
        cursor.execute(_REPORTS, given)
        cursor.execute(_VALUES, given)
    with closing(psycopg2.connect(**url.libpq)) as connection:
        connection.autocommit = True
        connection.cursor().execute("vacuum analyze")  # as autovacuum would have done long ago


def _params() -> dict[str, tuple[str, str]]:
    """The distribution of each parameter of the objective, and the SQL that draws from it."""
    study = optuna.create_study()
    trial = study.ask()
    suggest(trial)
    drawn = {
        "x": "-5 + 10 * random()",
        "rate": "power(10, -5 + 4 * random())",
        "width": "floor(16 + 497 * random())",
        "kind": "floor(3 * random())",
    }
    return {name: (distribution_to_json(of), drawn[name]) for name, of in trial.distributions.items()}


_TRIALS = """
    insert into trials (number, study_id, state, datetime_start, datetime_complete)
    select number, %(study)s, 'COMPLETE', timestamp '2025-01-01' + number * interval '1 minute',
           timestamp '2025-01-01' + (number + 1) * interval '1 minute'
    from generate_series(0, %(trials)s - 1) number
    order by number
"""
_PARAM = """
    insert into trial_params (trial_id, param_name, param_value, distribution_json)
    select trial_id, %(name)s, {drawn}, %(distribution)s
    from trials where study_id = %(study)s order by trial_id
"""
_REPORTS = """
    insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    select trial_id, step, random() + 1.0 / (step + 1), 'FINITE'
    from trials, generate_series(0, %(steps)s - 1) step
    where study_id = %(study)s order by trial_id, step
"""
_VALUES = """
    insert into trial_values (trial_id, objective, value, value_type)
    select trial_id, 0, intermediate_value, 'FINITE'
    from trial_intermediate_values join trials using (trial_id)
    where study_id = %(study)s and step = %(steps)s - 1 order by trial_id
"""


def mix(url: StorageURL, name: str = "filled") -> None:
    """Turn a filled study into one as eight workers leave it: 3 in 20 trials FAIL, 7 are PRUNED, 10 are COMPLETE.

    Every trial keeps all its reports; each step has two metrics. A failed trial has an error and a traceback.
    Studyhall's tables must be there.
    """
    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(_MIX, {"name": name})
    with closing(psycopg2.connect(**url.libpq)) as connection:
        connection.autocommit = True
        connection.cursor().execute("vacuum analyze")


_MIX = """
    create temporary table mine on commit drop as
    select trial_id, number from trials join studies using (study_id) where study_name = %(name)s;
    update trials set state = case when number %% 20 < 3 then 'FAIL' else 'PRUNED' end::trialstate
    where trial_id in (select trial_id from mine where number %% 20 < 10);
    update trials set datetime_start = timestamp '2025-01-01' + number / 8 * interval '1 minute',
        datetime_complete = timestamp '2025-01-01' + number / 8 * interval '1 minute'
            + case state when 'COMPLETE' then interval '58 seconds' else interval '30 seconds' end
    where trial_id in (select trial_id from mine);
    delete from trial_values where trial_id in (select trial_id from mine where number %% 20 < 10);
    insert into trial_user_attributes (trial_id, key, value_json)
    select trial_id, key, to_json(format('%%s: trial %%s' || repeat(E'\\n  File "x.py", line 1', lines),
        (array['ValueError', 'RuntimeError', 'OutOfMemoryError'])[1 + number %% 3], number))::text
    from mine, (values ('error', 0), ('traceback', 10)) attribute (key, lines) where number %% 20 < 3;
    insert into studyhall.metrics (trial_id, step, name, value)
    select trial_id, step, metric, intermediate_value + (metric = 'train_loss')::int * 0.1
    from trial_intermediate_values join mine using (trial_id), unnest(array['train_loss', 'val_loss']) metric
    order by trial_id, step, metric;
    insert into studyhall.workers (worker_id, study_ids, host, pid, device)
    select 'w' || n, array(select study_id from studies where study_name = %(name)s),
        'gpu' || n / 4, 1, 'cuda:' || n %% 4
    from generate_series(0, 7) n;
    update studyhall.leases l set worker_id = 'w' || number %% 8, epoch = 1, seconds = 30
    from mine where mine.trial_id = l.trial_id;
"""
