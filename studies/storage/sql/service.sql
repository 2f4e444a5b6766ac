-- The service around Optuna's tables: budgets, workers, leases, metrics. Parameters are psycopg2's.

-- name: schema_state
-- What this database holds of Optuna's schema and of ours.
select to_regclass('alembic_version') is not null as optuna, to_regclass('studyhall.version') is not null as studyhall

-- name: schema_version
-- Our newest migration here, and the Optuna that made Optuna's tables.
select (select max(version) from studyhall.version) as version, (select library_version from version_info) as optuna

-- name: create_study
-- The study with its directions, spec and budget, all or nothing; no row where the name is taken. Sent again, it
-- finds what it made by its token.
with request as (
    select answer from studyhall.requests where token = %(token)s
), study as (
    insert into studies (study_name) select %(name)s where not exists (select from request)
    on conflict (study_name) do nothing returning study_id
), direction as (
    insert into study_directions (study_id, objective, direction)
    select study_id, position - 1, upper(value)::studydirection
    from study, unnest(%(directions)s::text[]) with ordinality as d (value, position)
), user_attributes as (
    insert into study_user_attributes (study_id, key, value_json)
    select study_id, key, value from study, (values ('spec', %(spec)s), ('spec_sha256', to_json(%(sha256)s::text)::text)) as a (key, value)
), system_attributes as (
    insert into study_system_attributes (study_id, key, value_json)
    select study_id, 'study:metric_names', to_json(%(metric_names)s::text[])::text from study
), budget as (
    insert into studyhall.budgets (study_id, trials, max_failures, timeout_seconds, target)
    select study_id, %(trials)s, %(max_failures)s, %(timeout_seconds)s, %(target)s from study
), address as (
    insert into studyhall.addresses (study_id, url) select study_id, %(notify_url)s from study where %(notify_url)s::text is not null
), remembered as (
    insert into studyhall.requests (token, answer) select %(token)s, study_id from study
)
select study_id from study union all select answer from request

-- name: find_study
-- A study by its name, with its spec as JSON (null where stock Optuna made it) and its live budget.
select s.study_id, s.study_name as name, a.value_json as spec, b.uid::text as uid, studyhall.address(s.study_id) as notify_url,
    case when b.study_id is not null then json_build_object(
        'trials', b.trials, 'max_failures', b.max_failures, 'timeout', b.timeout_seconds, 'target', b.target
    ) end as budget
from studies s
left join studyhall.budgets b using (study_id)
left join study_user_attributes a on a.study_id = s.study_id and a.key = 'spec'
where s.study_name = %(name)s

-- name: study_names
-- All names.
select study_name as name from studies order by study_name

-- name: study_uids
-- All studies, by which a mirror knows whose runs are left; of those of stock Optuna the uid is null.
select s.study_name as name, b.uid::text as uid from studies s left join studyhall.budgets b using (study_id)

-- name: identity
-- By what this database is known elsewhere: when its tables were made, which a backup keeps.
select md5(extract(epoch from min(at))::text) as identity from studyhall.version

-- name: list_studies
-- One row for each study: its trials by state, budget, why no more begin, the best value of a single objective, and
-- workers seen lately.
select s.study_name as name, b.trials as budget, t.complete, t.pruned, t.running, t.waiting,
    t.failed + t.cancelled as fail, coalesce(b.paused, false) as paused, studyhall.ended(t) as ended,
    case when not exists (select from study_directions d where d.study_id = s.study_id and d.objective > 0) then t.best end as best,
    extract(epoch from now() - t.began at time zone 'UTC')::float8 as seconds_ago, coalesce(w.workers, 0) as workers
from studies s
cross join studyhall.tally(s.study_id) t
left join studyhall.budgets b on b.study_id = s.study_id
left join (
    select study_id, count(*) as workers from studyhall.workers, unnest(study_ids) as study_id
    where ended_at is null and seen_at > now() - interval '2 minutes' group by study_id
) w on w.study_id = s.study_id
order by t.began nulls last, s.study_id

-- name: status
-- Trials by state, and why no more begin (null where they do).
select t.complete, t.pruned, t.running, t.waiting, t.failed + t.cancelled as fail,
    coalesce((select paused from studyhall.budgets where study_id = t.study_id), false) as paused, studyhall.ended(t) as ended
from studyhall.tally(%(study_id)s) t

-- name: last_metrics
-- The metrics of the last step that each of these trials reported.
select m.trial_id, m.name, m.value
from studyhall.metrics m
where m.trial_id = any(%(trial_ids)s)
    and m.step = (select max(step) from studyhall.metrics where trial_id = m.trial_id)
order by m.trial_id, m.name

-- name: metrics
-- Every metric of every step of a trial.
select step, name, value from studyhall.metrics where trial_id = %(trial_id)s order by step, name

-- name: workers
-- The workers of a study seen in the last two minutes, each with the trial of this study that it runs.
select w.worker_id as id, w.host, w.pid, w.device, t.number as trial, l.step,
    extract(epoch from now() - greatest(w.seen_at, l.expires_at - make_interval(secs => l.seconds)))::float8 as seen_seconds_ago
from studyhall.workers w
left join (studyhall.leases l join trials t on t.trial_id = l.trial_id and t.state = 'RUNNING' and t.study_id = %(study_id)s)
    on l.worker_id = w.worker_id and l.held
where %(study_id)s = any(w.study_ids) and w.ended_at is null
    and greatest(w.seen_at, l.expires_at - make_interval(secs => l.seconds)) > now() - interval '2 minutes'
order by w.host, w.device, w.pid

-- name: attempts
-- Who ran each trial of a study last, where, and how often it was begun.
select t.number, l.worker_id as worker, w.host, w.device, l.epoch as times
from studyhall.leases l
join trials t using (trial_id)
left join studyhall.workers w on w.worker_id = l.worker_id
where t.study_id = %(study_id)s and l.epoch > 0

-- name: curves
-- The metrics of these trials, of the steps after the given ones.
select m.trial_id, m.step, m.name, m.value, m.at
from unnest(%(trial_ids)s::integer[], %(after)s::integer[]) as t (trial_id, after)
join studyhall.metrics m on m.trial_id = t.trial_id and m.step > t.after
order by m.trial_id, m.step, m.name

-- name: register_worker
-- A worker begins. Those that ended a day ago, and ran no trial that is there, are forgotten.
with forgotten as (
    delete from studyhall.workers where worker_id in (
        select worker_id from studyhall.workers w where w.seen_at < now() - interval '1 day'
            and not exists (select from studyhall.leases l where l.worker_id = w.worker_id)
        for update skip locked)
), answered as (
    delete from studyhall.requests where token in (
        select token from studyhall.requests where at < now() - interval '1 day' for update skip locked)
)
insert into studyhall.workers (worker_id, study_ids, host, pid, device)
values (%(worker_id)s, %(study_ids)s, %(host)s, %(pid)s, %(device)s)
on conflict (worker_id) do update set study_ids = excluded.study_ids, seen_at = now(), ended_at = null, died_of = null

-- name: forget_worker
-- A worker has ended, in order or not; its row says of the trials that it ran where that was.
update studyhall.workers set ended_at = coalesce(ended_at, now()), died_of = coalesce(died_of, %(died_of)s)
where worker_id = %(worker_id)s

-- name: claim
-- The next trial for a worker, with its lease, among all trials that are new or changed; or why there is none.
select reason, epoch, snapshot, (trial).*
from studyhall.claim(
    %(study_id)s, %(worker_id)s, %(lease_seconds)s, %(claim)s, %(most)s, %(since)s::pg_snapshot, %(again)s::integer[]
)

-- name: write
-- What a worker's trial has to tell, which keeps its lease; returns what a person wants of it.
select cancelled, interrupted, revision
from studyhall.write(%(trial_id)s, %(claim)s, %(revision)s, %(step)s, %(changes)s)

-- name: finish
-- The result of a worker's trial, with what else it has to tell.
select studyhall.finish(%(trial_id)s, %(claim)s, %(revision)s, %(state)s, %(values)s::float8[], %(changes)s)

-- name: give_back
-- A worker's trial, unfinished.
select studyhall.give_back(%(trial_id)s, %(claim)s, %(changes)s)

-- name: beat
-- A worker is alive; gives back the trials of silent ones. Whether connections are scarce.
select is_crowded from studyhall.beat(%(worker_id)s)

-- name: bury
-- Give back the running trials of these workers, which have ended; where they died of something, it counts.
select studyhall.bury(%(token)s, %(worker_ids)s, %(died_of)s) as buried

-- name: save_checkpoint
-- A checkpoint of a worker's trial; returns the names of those that nothing needs any more.
select name from studyhall.save_checkpoint(
    %(trial_id)s, %(claim)s, %(sequence)s, %(name)s, %(step)s, %(sha256)s, %(data)s
) as name

-- name: checkpoints
-- The checkpoints of a trial, the newest first.
select name, step, sha256, data from studyhall.checkpoints where trial_id = %(trial_id)s order by epoch desc, sequence desc

-- name: cancel
-- End a trial.
select studyhall.cancel(%(trial_id)s)

-- name: pause
-- Run no trial for now.
update studyhall.budgets set paused = true where study_id = %(study_id)s

-- name: resume
-- Run trials again.
update studyhall.budgets set paused = false, stopped = null where study_id = %(study_id)s

-- name: stop_study
-- Begin no more trials; the first reason stays.
update studyhall.budgets set stopped = coalesce(stopped, %(reason)s) where study_id = %(study_id)s

-- name: change_directions
-- Change a study's directions, and the spec that says them; or what stands against it. Two statements, so that the
-- second sees what was committed before the lock was granted.
select from studies where study_id = %(study_id)s for no key update;
with now as (
    select t.complete + t.pruned as finished, t.running, (
        select count(*) from studyhall.workers
        where %(study_id)s = any(study_ids) and ended_at is null and seen_at > now() - interval '2 minutes'
    ) as workers
    from studyhall.tally(%(study_id)s) t
), changed as (
    update study_directions d set direction = upper(value)::studydirection
    from now, unnest(%(directions)s::text[]) with ordinality as g (value, position)
    where (finished, running, workers) = (0, 0, 0) and d.study_id = %(study_id)s and d.objective = position - 1
), said as (
    update study_user_attributes a set value_json = v.value
    from now, (values ('spec', %(spec)s), ('spec_sha256', to_json(%(sha256)s::text)::text)) as v (key, value)
    where (finished, running, workers) = (0, 0, 0) and a.study_id = %(study_id)s and a.key = v.key
)
select finished, running, workers from now

-- name: extend
-- Change what may change of a study's budget; how many trials are done, where that is too many for it.
select finished from studyhall.extend(
    %(token)s, %(study_id)s, %(trials)s, %(more_trials)s, %(max_failures)s, %(timeout)s, %(target)s
)
