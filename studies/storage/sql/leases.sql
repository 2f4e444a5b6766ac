-- Leases: a worker claims trials, writes to them, and finishes or requeues them. Parameters are psycopg2's.

-- name: claim
-- Claim the next trials for a worker, of those that its scheduler chose, if there is one. Returns all trials that
-- changed since a snapshot, the claimed ones with their token, their epoch and the step at which they are paused; or one
-- row with the reason why there is none.
select reason, token, epoch, until, snapshot, (select studyhall.space_version(%(study_id)s)) as space_version, (trial).*
from studyhall.claim(
    %(study_id)s, %(worker_id)s, %(lease_seconds)s, %(claims)s::uuid[], %(most)s, %(fresh)s,
    %(numbers)s::integer[], %(untils)s::integer[], %(since)s::pg_snapshot, %(again)s::integer[]
)

-- name: write
-- Write to leased trials, which renews their leases. Returns for each whether it was cancelled or its study halted.
select trial_id, cancelled, interrupted, revision, failure
from studyhall.write(
    %(trial_ids)s::integer[], %(claims)s::uuid[], %(revisions)s::integer[], %(steps)s::integer[], %(changes)s::jsonb[]
)

-- name: finish
-- Write the results of leased trials, with their last reports and attributes.
select trial_id, failure
from studyhall.finish(
    %(trial_ids)s::integer[], %(claims)s::uuid[], %(revisions)s::integer[], %(states)s::trialstate[],
    %(values)s::text[], %(changes)s::jsonb[]
)

-- name: requeue
-- Requeue a leased trial: RUNNING to WAITING; or pause it until its scheduler chooses it again.
select studyhall.give_back(%(trial_id)s, %(claim)s, %(changes)s, %(paused)s)

-- name: requeue_expired
-- Requeue the trials of a study whose leases have expired; returns how many. Here a lease ends: studyhall.sweep
-- (migrations/0008_batches.sql) finds held leases whose expires_at has passed, and studyhall.requeue
-- (migrations/0010_schedulers.sql) turns each trial from RUNNING to WAITING, or to FAIL after its third death. Every claim and every heartbeat (studyhall.beat)
-- call studyhall.sweep as well; no timer runs in the server.
select studyhall.sweep(%(study_id)s) as requeued

-- name: save_checkpoint
-- Save a checkpoint of a leased trial; returns the names of older ones, whose files can be deleted.
select name from studyhall.save_checkpoint(
    %(trial_id)s, %(claim)s, %(sequence)s, %(name)s, %(step)s, %(sha256)s, %(data)s
) as name

-- name: checkpoints
-- The checkpoints of a trial, the newest first.
select name, step, sha256, data from studyhall.checkpoints where trial_id = %(trial_id)s order by epoch desc, sequence desc

-- name: timings
-- When trials ran, for an estimate of the time left: those that ended since the one that is %(count)s before the last
-- finished one, those that run, and the first of the study.
select t.state in ('COMPLETE', 'PRUNED') as is_finished, t.datetime_start as begin, t.datetime_complete as "end",
    coalesce(nullif(l.epoch - l.promotions, 0), 1) as times
from trials t
left join studyhall.leases l using (trial_id)
where t.study_id = %(study_id)s and t.state <> 'WAITING' and t.datetime_start is not null and (
    coalesce(t.datetime_complete >= (
        select datetime_complete from trials
        where study_id = %(study_id)s and state in ('COMPLETE', 'PRUNED') and datetime_complete is not null
        order by datetime_complete desc offset %(count)s limit 1
    ), true)
    or t.datetime_start = (select min(datetime_start) from trials where study_id = %(study_id)s)
)
order by t.number

-- name: attempts
-- The last attempt of each trial of a study: its worker, host and device, and how many attempts there were.
select t.number, l.worker_id as worker, w.host, w.device, l.epoch - l.promotions as times
from studyhall.leases l
join trials t using (trial_id)
left join studyhall.workers w on w.worker_id = l.worker_id
where t.study_id = %(study_id)s and l.epoch > 0
order by t.number
