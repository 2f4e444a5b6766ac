-- What `studyhall doctor` reads. Nothing here changes anything.

-- name: server_facts
-- The server, its clock (seconds since 1970), and its connections. pg_stat_activity would not show those of
-- others to everybody.
select current_setting('server_version') as version, current_setting('server_version_num')::integer as version_number,
    extract(epoch from clock_timestamp())::float8 as clock, current_setting('TimeZone') as time_zone,
    pg_is_in_recovery() as is_standby, current_database() as database,
    (select sum(numbackends) from pg_stat_database)::integer as connections,
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer as slots,
    to_regclass('version_info') is not null and to_regclass('alembic_version') is not null as has_optuna,
    to_regclass('studyhall.version') is not null as has_studyhall

-- name: optuna_version
-- The Optuna that made Optuna's tables, and their version.
select library_version as optuna, version_num as version from version_info, alembic_version

-- name: examined_studies
-- The studies of ours: where their checkpoints lie, what they run, and whether they go on.
select s.study_name as name, b.uid::text as uid, b.paused, a.value_json::json -> 'checkpoints' ->> 'store' as store,
    a.value_json::json -> 'objective' ->> 'path' as objective,
    studyhall.ended(t) as ended
from studies s
join studyhall.budgets b using (study_id)
left join study_user_attributes a on a.study_id = s.study_id and a.key = 'spec'
cross join studyhall.tally(s.study_id) t
order by s.study_id

-- name: stuck_trials
-- Running trials whose lease expired a whole lease ago and which no worker has requeued since; and trials without a
-- lease, of stock Optuna, that started an hour ago. Returns the seconds since the expiry, or since the start.
select s.study_name as study, t.number, coalesce(l.held, false) as is_held, w.host,
    extract(epoch from case when l.held then now() - l.expires_at else now() - t.datetime_start at time zone 'UTC' end
    )::float8 as seconds
from trials t
join studies s using (study_id)
left join studyhall.leases l using (trial_id)
left join studyhall.workers w on w.worker_id = l.worker_id
where t.state = 'RUNNING' and case when l.held
    then l.expires_at < now() - make_interval(secs => l.seconds)
        and pg_postmaster_start_time() < now() - make_interval(secs => 2 * l.seconds)
    else t.datetime_start at time zone 'UTC' < now() - interval '1 hour' end
order by s.study_id, t.number

-- name: silent_workers
-- Workers with a running trial that have missed a heartbeat, of which a lease has three.
select w.host, w.pid, s.study_name as study, t.number, extract(epoch from now() - w.seen_at)::float8 as seen_seconds_ago,
    extract(epoch from l.expires_at - now())::float8 as lease_seconds_left
from studyhall.leases l
join studyhall.workers w on w.worker_id = l.worker_id
join trials t on t.trial_id = l.trial_id
join studies s on s.study_id = t.study_id
where l.held and t.state = 'RUNNING' and l.expires_at > now()
    and w.seen_at < now() - make_interval(secs => greatest(30, l.seconds / 2))
order by w.host, w.pid

-- name: odd_times
-- Trials that begin in the future, or end before they begin: as Optuna 4 would write them, in local time.
select s.study_name as study, t.number
from trials t join studies s using (study_id)
where t.datetime_start at time zone 'UTC' > now() + interval '5 minutes'
    or t.datetime_complete < t.datetime_start - interval '5 minutes'
order by t.trial_id limit 3

-- name: has_heartbeats
-- Whether a stock Optuna worker with heartbeats runs a trial.
select exists (select from trial_heartbeats join trials using (trial_id) where state = 'RUNNING') as has_heartbeats
