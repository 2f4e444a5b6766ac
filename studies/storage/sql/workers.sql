-- Workers: which are alive, and the trials of dead ones. Parameters are psycopg2's.

-- name: register_worker
-- A worker starts. Deletes the rows of workers last seen a day ago, unless a trial refers to them.
with forgotten as (
    delete from studyhall.workers where worker_id in (
        select worker_id from studyhall.workers w where w.seen_at < now() - interval '1 day'
            and not exists (select from studyhall.leases l where l.worker_id = w.worker_id)
        for update skip locked)
), answered as (
    delete from studyhall.requests where token in (
        select token from studyhall.requests where at < now() - interval '1 day' for update skip locked)
)
insert into studyhall.workers (worker_id, study_ids, host, pid, device, slots)
values (%(worker_id)s, %(study_ids)s, %(host)s, %(pid)s, %(device)s, %(slots)s)
on conflict (worker_id) do update set study_ids = excluded.study_ids, seen_at = now(), ended_at = null, died_of = null

-- name: forget_worker
-- A worker has ended, orderly or not. Its row stays: it says on which host its trials ran.
update studyhall.workers set ended_at = coalesce(ended_at, now()), died_of = coalesce(died_of, %(died_of)s)
where worker_id = %(worker_id)s

-- name: workers
-- The workers of a study seen in the last two minutes, each with the trials of this study that it runs. A report renews
-- a lease and leaves the worker's row alone: the last sign of life is the later one of the two.
with running as (
    select l.worker_id, max(l.expires_at - make_interval(secs => l.seconds)) as renewed_at,
        json_agg(json_build_object('number', t.number, 'step', l.step) order by t.number) as trials
    from studyhall.leases l join trials t using (trial_id)
    where l.study_id = %(study_id)s and l.held and t.state = 'RUNNING'
    group by l.worker_id
)
select w.worker_id as id, w.host, w.pid, w.device, w.slots, coalesce(r.trials, '[]') as trials,
    extract(epoch from now() - greatest(w.seen_at, r.renewed_at))::float8 as seen_seconds_ago
from studyhall.workers w left join running r using (worker_id)
where %(study_id)s = any(w.study_ids) and w.ended_at is null
    and greatest(w.seen_at, r.renewed_at) > now() - interval '2 minutes'
order by w.host, w.device, w.pid

-- name: heartbeat
-- A worker is alive. Requeues expired trials of its studies; returns whether the server is short of connections.
select is_crowded from studyhall.beat(%(worker_id)s)

-- name: reap
-- Requeue the running trials of these dead workers; with a cause of death it counts against the trials.
select studyhall.bury(%(token)s, %(worker_ids)s, %(died_of)s) as requeued

-- name: expire_all
-- Every worker that was alive before a time is gone, and its leases expire at once.
with gone as (
    update studyhall.workers set ended_at = now(), died_of = 'it ended without a word'
    where ended_at is null and seen_at < to_timestamp(%(before)s)
)
update studyhall.leases set seconds = 0, expires_at = least(expires_at, now() - interval '1 ms')
where held and expires_at - make_interval(secs => seconds) < to_timestamp(%(before)s)

-- name: sweep_all
-- Requeue the trials whose leases have expired, in all studies.
select studyhall.sweep(study_id) from (
    select distinct study_id from studyhall.leases where held and expires_at < now()) studies

-- name: lost_workers
-- The workers of a study that were lost in the last hour: found dead by their supervisor, or without a heartbeat for a
-- minute and two leases. The time while the server was down does not count: no heartbeat could arrive.
with found as materialized (
    select worker_id, host, pid, device, died_of, extract(epoch from now() - seen_at)::float8 as seen_seconds_ago,
        extract(epoch from now() - greatest(seen_at, pg_postmaster_start_time()))::float8 as silent
    from studyhall.workers
    where %(study_id)s = any(study_ids) and seen_at > now() - interval '1 hour'
        and (died_of is not null or ended_at is null and seen_at < now() - interval '1 minute')
)
select worker_id as worker, host, pid, device, died_of, seen_seconds_ago
from found
where died_of is not null or silent > greatest(60, 2 * (
    select max(l.seconds) from studyhall.leases l where l.study_id = %(study_id)s))
order by host, pid
