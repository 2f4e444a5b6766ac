-- Studyhall's own tables, beside Optuna's, which are never altered. Optuna's names (studies, trials, …)
-- are found through the connection's search path. Our times are timestamptz by the database's clock;
-- Optuna 5 keeps its own as UTC without a zone.

create schema if not exists studyhall;

create table studyhall.budgets (
    study_id        integer primary key references studies on delete cascade,
    trials          integer not null check (trials > 0),        -- COMPLETE + PRUNED
    max_failures    integer not null check (max_failures > 0),  -- FAIL
    timeout_seconds double precision check (timeout_seconds > 0 and timeout_seconds < 1e9),
    target          double precision check (target > '-infinity' and target < 'infinity'),
    stopped         text                                        -- why no more trials may begin
);

create table studyhall.workers (
    worker_id  text primary key,
    study_id   integer not null references studies on delete cascade,
    host       text not null,
    pid        integer not null,
    device     text not null,
    trial_id   integer references trials on delete set null,    -- what it runs, if anything
    step       integer,                                         -- the last step it reported of that
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now()
);
create index on studyhall.workers (study_id);
create index on studyhall.workers (trial_id);

-- The right to write to a trial. A trial without a lease belongs to a stock Optuna worker.
create table studyhall.leases (
    trial_id   integer primary key references trials on delete cascade,
    worker_id  text not null,
    epoch      integer not null default 1,                      -- grows with each claim
    lost       integer not null default 0,                      -- how many workers died on it
    expires_at timestamptz not null
);

create table studyhall.metrics (
    trial_id integer not null references trials on delete cascade,
    step     integer not null,
    name     text not null,
    value    double precision not null,
    primary key (trial_id, step, name)
);

-- Give a running trial back: RUNNING → WAITING, same row, same number, same parameters. Where its
-- worker died, of p_died_of, it counts; a trial on which three died fails, so that it cannot take them all.
create function studyhall.requeue(p_trial_id integer, p_died_of text) returns void
language plpgsql as $$
declare
    times integer;
begin
    update studyhall.leases set lost = lost + (p_died_of is not null)::integer, expires_at = now()
        where trial_id = p_trial_id returning lost into times;
    if p_died_of is not null and times >= 3 then
        insert into trial_user_attributes (trial_id, key, value_json)
            values (p_trial_id, 'error', to_json(format('%s workers died on this trial, the last: %s', times, p_died_of))::text)
            on conflict (trial_id, key) do update set value_json = excluded.value_json;
        update trials set state = 'FAIL', datetime_complete = now() at time zone 'UTC'
            where trial_id = p_trial_id and state = 'RUNNING';
    else
        update trials set state = 'WAITING' where trial_id = p_trial_id and state = 'RUNNING';
    end if;
    update studyhall.workers set trial_id = null, step = null where trial_id = p_trial_id;
end $$;

-- Why the study begins no more trials, or null where it does.
create function studyhall.ended(p_study_id integer) returns text
language plpgsql stable as $$
declare
    budget studyhall.budgets;
    finished integer;
    failed integer;
    began timestamp;
begin
    select * into budget from studyhall.budgets where study_id = p_study_id;
    select count(*) filter (where state in ('COMPLETE', 'PRUNED')), count(*) filter (where state = 'FAIL'), min(datetime_start)
        into finished, failed, began from trials where study_id = p_study_id;
    return case
        when finished >= budget.trials then 'complete'
        when budget.stopped is not null then budget.stopped
        when failed >= budget.max_failures then 'failures'
        when began + make_interval(secs => budget.timeout_seconds) <= now() at time zone 'UTC' then 'timeout'
        when budget.target is not null and exists (
            select from trials t join trial_values v using (trial_id) join study_directions d using (study_id, objective)
            where t.study_id = p_study_id and t.state = 'COMPLETE' and objective = 0
                and case d.direction
                    when 'MINIMIZE' then v.value_type = 'INF_NEG' or v.value <= budget.target
                    else v.value_type = 'INF_POS' or v.value >= budget.target end
        ) then 'target'
    end;
end $$;

-- Give a worker its next trial: one that waits, else a new one, if the budget has room for it.
-- Under the study's row lock, which stock Optuna takes too when it creates a trial. A function, because
-- each statement in it sees what was committed before the lock was granted; one bare statement would not.
create function studyhall.claim(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision,
    out trial_id integer,   -- null where there is none
    out number integer,
    out reason text         -- then: 'wait' for the running ones, or why the study is over
) language plpgsql as $$
#variable_conflict use_column
declare
    orphan record;
    finished_or_running integer;
begin
    perform from studies where study_id = p_study_id for no key update;
    if not found then
        reason := 'deleted';
        return;
    end if;

    for orphan in
        select t.trial_id, coalesce(w.host, l.worker_id) as host
        from trials t join studyhall.leases l on l.trial_id = t.trial_id
            left join studyhall.workers w on w.worker_id = l.worker_id
        where t.study_id = p_study_id and t.state = 'RUNNING' and l.expires_at < now()
    loop
        perform studyhall.requeue(orphan.trial_id, 'no sign of life from ' || orphan.host);
    end loop;

    reason := studyhall.ended(p_study_id);
    if reason is not null then
        return;
    end if;

    select count(*) into finished_or_running from trials
        where study_id = p_study_id and state in ('COMPLETE', 'PRUNED', 'RUNNING');
    if finished_or_running >= (select trials from studyhall.budgets where study_id = p_study_id) then
        reason := 'wait';
        return;
    end if;

    update trials set state = 'RUNNING', datetime_start = coalesce(datetime_start, now() at time zone 'UTC')
        where trials.trial_id = (
            select t.trial_id from trials t where t.study_id = p_study_id and t.state = 'WAITING'
            order by t.number limit 1 for update skip locked)
        returning trials.trial_id, trials.number into trial_id, number;
    if claim.trial_id is null then
        insert into trials (study_id, number, state, datetime_start)
            select p_study_id, count(*), 'RUNNING', now() at time zone 'UTC' from trials where study_id = p_study_id
            returning trials.trial_id, trials.number into trial_id, number;
    end if;

    insert into studyhall.leases as l (trial_id, worker_id, expires_at)
        values (claim.trial_id, p_worker_id, now() + make_interval(secs => p_lease_seconds))
        on conflict (trial_id) do update
            set worker_id = excluded.worker_id, epoch = l.epoch + 1, expires_at = excluded.expires_at;
    update studyhall.workers w set trial_id = claim.trial_id, step = null, seen_at = now()
        where w.worker_id = p_worker_id;
end $$;

-- Renew a worker's lease on its trial, and say whether it still has one.
create function studyhall.renew(
    p_worker_id text, p_trial_id integer, p_step integer, p_lease_seconds double precision
) returns boolean language plpgsql as $$
begin
    update studyhall.workers set seen_at = now(), step = coalesce(p_step, step) where worker_id = p_worker_id;
    if p_trial_id is null then
        return true;
    end if;
    update studyhall.leases l set expires_at = now() + make_interval(secs => p_lease_seconds)
        from trials t
        where l.trial_id = p_trial_id and l.worker_id = p_worker_id
            and t.trial_id = l.trial_id and t.state = 'RUNNING';
    return found;
end $$;
