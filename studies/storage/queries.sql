-- Each statement that Studyhall sends, under its name. Parameters are psycopg2's: %(name)s.

-- name: schema_state
-- What this database holds of Optuna's schema and of ours.
select to_regclass('alembic_version') is not null as optuna, to_regclass('studyhall.version') is not null as studyhall

-- name: schema_version
-- Our newest migration here.
select max(version) as version from studyhall.version

-- name: create_study
-- The study with its directions, spec and budget, all or nothing; no row where the name is taken.
with study as (
    insert into studies (study_name) values (%(name)s) on conflict (study_name) do nothing returning study_id
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
)
select study_id from study

-- name: find_study
-- A study by its name, with its spec as JSON (null where stock Optuna made it) and its live budget.
select s.study_id, s.study_name as name, a.value_json as spec,
    case when b.study_id is not null then json_build_object(
        'trials', b.trials, 'max_failures', b.max_failures, 'timeout', b.timeout_seconds, 'target', b.target
    ) end as budget
from studies s
left join studyhall.budgets b using (study_id)
left join study_user_attributes a on a.study_id = s.study_id and a.key = 'spec'
where s.study_name = %(name)s

-- name: study_names
-- All names, for the nearest to a misspelt one.
select study_name as name from studies order by study_name

-- name: list_studies
-- One row for each study: its trials by state, budget, best value, and workers seen lately.
select s.study_name as name, b.trials as budget,
    count(t.trial_id) filter (where t.state = 'COMPLETE') as complete,
    count(t.trial_id) filter (where t.state = 'PRUNED') as pruned,
    count(t.trial_id) filter (where t.state = 'RUNNING') as running,
    count(t.trial_id) filter (where t.state = 'WAITING') as waiting,
    count(t.trial_id) filter (where t.state = 'FAIL') as fail,
    extract(epoch from now() - min(t.datetime_start) at time zone 'UTC')::float8 as seconds_ago,
    (select count(*) from studyhall.workers w
        where w.study_id = s.study_id and w.seen_at > now() - interval '2 minutes') as workers
from studies s
left join studyhall.budgets b using (study_id)
left join trials t on t.study_id = s.study_id
group by s.study_id, b.trials
order by min(t.datetime_start) nulls last, s.study_id

-- name: status
-- Trials by state, and when the study began and last ended one (seconds since the epoch).
select
    count(*) filter (where state = 'COMPLETE') as complete,
    count(*) filter (where state = 'PRUNED') as pruned,
    count(*) filter (where state = 'RUNNING') as running,
    count(*) filter (where state = 'WAITING') as waiting,
    count(*) filter (where state = 'FAIL') as fail,
    case when exists (select from studyhall.budgets where study_id = %(study_id)s) then studyhall.ended(%(study_id)s) end as ended
from trials where study_id = %(study_id)s

-- name: best
-- The best COMPLETE trial; of equal ones the lowest number. None where there are several objectives.
select t.trial_id, t.number,
    case v.value_type when 'INF_POS' then 'infinity' when 'INF_NEG' then '-infinity' else v.value end as value
from trials t
join trial_values v using (trial_id)
join study_directions d using (study_id, objective)
where t.study_id = %(study_id)s and t.state = 'COMPLETE'
    and not exists (select from study_directions where study_id = %(study_id)s and objective > 0)
order by
    case d.direction when 'MINIMIZE' then 1 else -1 end
        * case v.value_type when 'INF_POS' then 'infinity' when 'INF_NEG' then '-infinity' else v.value end,
    t.number
limit 1

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
-- The workers of a study seen in the last two minutes.
select w.worker_id as id, w.host, w.pid, w.device, t.number as trial, w.step,
    extract(epoch from now() - w.seen_at)::float8 as seen_seconds_ago
from studyhall.workers w
left join trials t on t.trial_id = w.trial_id
where w.study_id = %(study_id)s and w.seen_at > now() - interval '2 minutes'
order by w.host, w.device, w.pid

-- name: leases
-- Who ran each trial of a study last, and how often it was begun.
select t.number, l.worker_id, l.epoch
from studyhall.leases l join trials t using (trial_id) where t.study_id = %(study_id)s

-- name: register_worker
-- A worker begins; those not seen for a day are forgotten.
with forgotten as (
    delete from studyhall.workers where seen_at < now() - interval '1 day'
)
insert into studyhall.workers (worker_id, study_id, host, pid, device)
values (%(worker_id)s, %(study_id)s, %(host)s, %(pid)s, %(device)s)

-- name: forget_worker
-- A worker has ended.
delete from studyhall.workers where worker_id = %(worker_id)s

-- name: claim
-- The next trial for a worker, with its lease; or why there is none.
select trial_id, number, reason from studyhall.claim(%(study_id)s, %(worker_id)s, %(lease_seconds)s)

-- name: renew
-- Keep the lease of a worker's trial; false where it is gone.
select studyhall.renew(%(worker_id)s, %(trial_id)s, %(step)s, %(lease_seconds)s) as kept

-- name: add_metrics
-- The metrics of one step. One that was reported before keeps its first value.
insert into studyhall.metrics (trial_id, step, name, value)
select %(trial_id)s, %(step)s, name, value from unnest(%(names)s::text[], %(values)s::float8[]) as m (name, value)
on conflict do nothing

-- name: give_back
-- Return the running trials of these workers; those that died, and why, count against the trial.
select studyhall.requeue(t.trial_id, %(died_of)s) from trials t join studyhall.leases l using (trial_id)
where t.state = 'RUNNING' and l.worker_id = any(%(worker_ids)s)

-- name: stop_study
-- Begin no more trials; the first reason stays.
update studyhall.budgets set stopped = coalesce(stopped, %(reason)s) where study_id = %(study_id)s

-- name: extend
-- Change what may change of a study's budget. Whatever stopped it may have gone with that.
update studyhall.budgets set
    trials = coalesce(%(trials)s, trials) + %(more_trials)s,
    max_failures = coalesce(%(max_failures)s, max_failures),
    timeout_seconds = coalesce(%(timeout)s, timeout_seconds),
    target = coalesce(%(target)s, target),
    stopped = null
where study_id = %(study_id)s

-- name: delete_study
-- A study and all that hangs on it: Optuna's foreign keys do not cascade, so the leaves go first.
with
    doomed as (select trial_id from trials where study_id = %(study_id)s),
    a as (delete from trial_heartbeats where trial_id in (select trial_id from doomed)),
    b as (delete from trial_intermediate_values where trial_id in (select trial_id from doomed)),
    c as (delete from trial_params where trial_id in (select trial_id from doomed)),
    d as (delete from trial_system_attributes where trial_id in (select trial_id from doomed)),
    e as (delete from trial_user_attributes where trial_id in (select trial_id from doomed)),
    f as (delete from trial_values where trial_id in (select trial_id from doomed)),
    g as (delete from study_directions where study_id = %(study_id)s),
    h as (delete from study_system_attributes where study_id = %(study_id)s),
    i as (delete from study_user_attributes where study_id = %(study_id)s),
    j as (delete from trials where study_id = %(study_id)s)
delete from studies where study_id = %(study_id)s
