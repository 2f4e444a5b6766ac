-- Workers: who is at work. Parameters are psycopg2's.

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
