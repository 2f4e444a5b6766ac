-- What it costs to claim and to read no longer grows with the number of trials that wait or are finished, and
-- every function takes its locks in one order.
--
-- Lock order, everywhere: study, trial, lease, then whatever hangs on the trial. Of several trials the one with
-- the lowest id comes first, or locked ones are skipped. A write needs its trial to stay, and takes KEY SHARE on
-- it, which the foreign keys of what it inserts would take anyway.

drop view studyhall.contents cascade;  -- and the functions that return its rows
drop function studyhall.tally, studyhall.ended, studyhall.has_room, studyhall.new_trial,
    studyhall.take, studyhall.cancel, studyhall.set, studyhall.sweep, studyhall.bury, studyhall.requeue,
    studyhall.fail, studyhall.write, studyhall.finish, studyhall.give_back, studyhall.save_checkpoint,
    studyhall.set_param, studyhall.set_state, studyhall.beat;

-- Each trial has a row here, whoever made it. In `changed` stands the transaction that changed the trial last:
-- who has read the study in some snapshot needs only those trials whose last change that snapshot does not show.
alter table studyhall.leases
    add study_id integer,
    add changed xid8 not null default pg_current_xact_id();
update studyhall.leases l set study_id = t.study_id from trials t where t.trial_id = l.trial_id;
insert into studyhall.leases (trial_id, study_id, worker_id, held, epoch, seconds, expires_at)
    select trial_id, study_id, '', false, 0, 0, now() from trials t
    where not exists (select from studyhall.leases l where l.trial_id = t.trial_id);
alter table studyhall.leases alter study_id set not null;
create index on studyhall.leases (study_id, changed);
create index on studyhall.leases (study_id) where held;
create index studyhall_waiting on trials (study_id, number) where state = 'WAITING';

-- Every change of a trial's state, until the next claim counts it. Only ever inserted into, so that two trials
-- that end at the same moment do not wait for each other.
create table studyhall.transitions (
    study_id integer not null,
    trial_id integer not null,
    was      trialstate,                                    -- null for a new trial
    became   trialstate                                     -- null for a deleted one
);
create index on studyhall.transitions (study_id);

-- A study's trials as far as they are counted. What is not counted yet stands in transitions.
create table studyhall.tallies (
    study_id  integer primary key references studies on delete cascade,
    waiting   integer not null,
    running   integer not null,
    complete  integer not null,
    pruned    integer not null,
    failed    integer not null,
    cancelled integer not null,                             -- FAILed as well, but no failures
    began     timestamp,                                    -- the first trial, in UTC
    best      double precision                              -- of the first objective, where constraints are kept
);
insert into studyhall.transitions (study_id, trial_id, became) select study_id, trial_id, state from trials;
alter table studyhall.budgets drop settled, drop finished, drop failed, drop began, drop best;

-- Whoever may write leases may write these.
do $$
declare
    grantee record;
begin
    for grantee in
        select a.grantee::regrole as role, a.privilege_type as privilege
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'studyhall.leases'::regclass and a.grantee not in (0, c.relowner)
    loop
        execute format('grant %s on studyhall.transitions, studyhall.tallies to %s', grantee.privilege, grantee.role);
        if grantee.privilege = 'UPDATE' then
            execute format('grant delete on studyhall.transitions to %s', grantee.role);
        end if;
    end loop;
end $$;

-- Keeps transitions and `changed` true, whoever writes. Stock Optuna's user may have no rights on our tables.
create function studyhall.note_state() returns trigger
language plpgsql security definer set search_path = pg_catalog as $$
begin
    if tg_op = 'INSERT' then
        insert into studyhall.leases (trial_id, study_id, worker_id, held, epoch, seconds, expires_at)
            values (new.trial_id, new.study_id, '', false, 0, 0, now());
        insert into studyhall.transitions values (new.study_id, new.trial_id, null, new.state);
    elsif tg_op = 'DELETE' then
        insert into studyhall.transitions values (old.study_id, old.trial_id, old.state, null);
    else
        update studyhall.leases set changed = pg_current_xact_id(), revision = revision + 1
            where trial_id = new.trial_id and changed <> pg_current_xact_id();
        if new.state <> old.state then
            insert into studyhall.transitions values (new.study_id, new.trial_id, old.state, new.state);
        end if;
    end if;
    return null;
end $$;
create trigger studyhall_note_new after insert on trials for each row execute function studyhall.note_state();
create trigger studyhall_note_state after update on trials for each row when (old.* is distinct from new.*)
    execute function studyhall.note_state();
create trigger studyhall_note_gone after delete on trials for each row
    when (current_setting('studyhall.own', true) is distinct from 'yes') execute function studyhall.note_state();

-- The same for what hangs on a trial, before it is written, by the lock order. Our own functions take care of that
-- themselves, and say so by a setting of their transaction. (As a clause of the functions only a superuser could make it.)
create function studyhall.note_change() returns trigger
language plpgsql security definer set search_path = pg_catalog as $$
begin
    execute format('select from %I.trials where trial_id = $1 for key share', tg_table_schema) using new.trial_id;
    update studyhall.leases set changed = pg_current_xact_id(), revision = revision + 1
        where trial_id = new.trial_id and changed <> pg_current_xact_id();
    return new;
end $$;
do $$
declare
    child text;
begin
    foreach child in array array['trial_params', 'trial_values', 'trial_intermediate_values', 'trial_user_attributes',
        'trial_system_attributes']
    loop
        execute format('create trigger studyhall_note_change before insert or update on %I for each row '
            'when (current_setting(''studyhall.own'', true) is distinct from ''yes'') '
            'execute function studyhall.note_change()', child);
    end loop;
end $$;

create function studyhall.forget_study() returns trigger
language plpgsql security definer set search_path = pg_catalog as $$
begin
    delete from studyhall.transitions where study_id = old.study_id;
    return null;
end $$;
create trigger studyhall_forget_study after delete on studies for each row execute function studyhall.forget_study();

-- The contents of trials; null where there is none. Values are separated by commas; params (name as JSON, value,
-- distribution, name, …) by the unit separator, which stands in no JSON; attributes are one JSON object, of Python's
-- kind, which may hold NaN; of reports the steps and the values, as binary integers and floats. As JSON all of it took
-- several times as long to write and to read.
create view studyhall.contents as
select t.trial_id, t.study_id, t.number, t.state::text as state, t.datetime_start, t.datetime_complete,
    (select string_agg(case value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else value::text end,
        ',' order by objective) from trial_values v where v.trial_id = t.trial_id) as "values",
    (select string_agg(to_json(param_name)::text || e'\x1f' || param_value || e'\x1f' || distribution_json, e'\x1f'
        order by param_id) from trial_params p where p.trial_id = t.trial_id) as params,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',' order by trial_user_attribute_id) || '}'
        from trial_user_attributes a where a.trial_id = t.trial_id) as user_attrs,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',' order by trial_system_attribute_id) || '}'
        from trial_system_attributes a where a.trial_id = t.trial_id) as system_attrs,
    r.steps, r.reports
from trials t, lateral (
    select string_agg(int4send(step), '' order by step) as steps,
        string_agg(float8send(case intermediate_value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity'
            when 'NAN' then 'NaN' else intermediate_value end), '' order by step) as reports
    from trial_intermediate_values i where i.trial_id = t.trial_id
) r;

-- The trials of a study that a client does not know as they are: those whose last change the snapshot of its last
-- read does not show (all, where it has not read yet), and those that it asks for again. Each row has the snapshot
-- to ask by next time.
create function studyhall.changes(p_study_id integer, p_since pg_snapshot, p_again integer[])
returns table (snapshot text, trial studyhall.contents)
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    ids integer[];
begin
    perform from studies where study_id = p_study_id;
    if not found then
        raise exception 'no study of id %', p_study_id using errcode = 'P0002';
    end if;
    snapshot := pg_current_snapshot()::text;  -- before the rest: rather read twice than never
    ids := array(
        select l.trial_id from studyhall.leases l
        where l.study_id = p_study_id and l.changed >= coalesce(pg_snapshot_xmin(p_since), '0')
            and (p_since is null or not pg_visible_in_snapshot(l.changed, p_since)));
    return query select snapshot, c from unnest(ids || p_again) as id
        join studyhall.contents c on c.trial_id = id;
end $$;

-- A study's trials by state, when the first began and the best value: what is counted, and these transitions.
create function studyhall.counted(p_study_id integer, p_transitions studyhall.transitions[])
returns studyhall.tallies language plpgsql stable set plan_cache_mode = force_generic_plan as $$
declare
    t studyhall.tallies;
    n studyhall.tallies;
    minimize boolean;
begin
    select * into t from studyhall.tallies where study_id = p_study_id;
    if p_transitions is null then
        return (p_study_id, coalesce(t.waiting, 0), coalesce(t.running, 0), coalesce(t.complete, 0),
            coalesce(t.pruned, 0), coalesce(t.failed, 0), coalesce(t.cancelled, 0), t.began, t.best);
    end if;
    select direction = 'MINIMIZE' into minimize from study_directions where study_id = p_study_id and objective = 0;
    select p_study_id,
        coalesce(t.waiting, 0) + count(*) filter (where became = 'WAITING') - count(*) filter (where was = 'WAITING'),
        coalesce(t.running, 0) + count(*) filter (where became = 'RUNNING') - count(*) filter (where was = 'RUNNING'),
        coalesce(t.complete, 0) + count(*) filter (where became = 'COMPLETE') - count(*) filter (where was = 'COMPLETE'),
        coalesce(t.pruned, 0) + count(*) filter (where became = 'PRUNED') - count(*) filter (where was = 'PRUNED'),
        coalesce(t.failed, 0) + count(*) filter (where became = 'FAIL' and l.cancelled is not true)
            - count(*) filter (where was = 'FAIL' and l.cancelled is not true),
        coalesce(t.cancelled, 0) + count(*) filter (where became = 'FAIL' and l.cancelled)
            - count(*) filter (where was = 'FAIL' and l.cancelled),
        least(t.began, min(trials.datetime_start)),
        case when minimize then least(t.best, min(v.number)) else greatest(t.best, max(v.number)) end
    into n
    from unnest(p_transitions) as x
    left join trials on trials.trial_id = x.trial_id
    left join studyhall.leases l on l.trial_id = x.trial_id
    left join lateral (
        select case value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else value end as number
        from trial_values where trial_id = x.trial_id and objective = 0 and x.became = 'COMPLETE'
            and not exists (  -- a constraint that is broken: one number, or an older Optuna's list of them
                select from trial_system_attributes a, unnest(string_to_array(trim('[]' from a.value_json), ',')) c
                where a.trial_id = x.trial_id and (a.key = 'constraints' or a.key like 'constraints:%')
                    and trim(c) not in ('', 'null') and c::float8 > 0)
    ) v on true;
    return n;
end $$;

create function studyhall.tally(p_study_id integer) returns studyhall.tallies
language plpgsql stable set plan_cache_mode = force_generic_plan as $$
begin
    return studyhall.counted(
        p_study_id, (select array_agg(x) from studyhall.transitions x where x.study_id = p_study_id));
end $$;

-- The same, and counts the transitions for good. Under the study's row lock.
create function studyhall.count_trials(p_study_id integer) returns studyhall.tallies
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    fresh studyhall.transitions[];
    t studyhall.tallies;
begin
    with gone as (delete from studyhall.transitions where study_id = p_study_id returning *)
        select array_agg(row(study_id, trial_id, was, became)::studyhall.transitions) into fresh from gone;
    t := studyhall.counted(p_study_id, fresh);
    if fresh is not null then
        insert into studyhall.tallies select t.* on conflict (study_id) do update set
            waiting = excluded.waiting, running = excluded.running, complete = excluded.complete,
            pruned = excluded.pruned, failed = excluded.failed, cancelled = excluded.cancelled,
            began = excluded.began, best = excluded.best;
    end if;
    return t;
end $$;

-- Why a study begins no more trials, or null where it does, or where it has no budget.
create function studyhall.ended(t studyhall.tallies) returns text
language plpgsql stable set plan_cache_mode = force_generic_plan as $$
begin
    return (
        select case
            when t.complete + t.pruned >= b.trials then 'complete'
            when b.stopped is not null then b.stopped
            when t.failed >= b.max_failures then 'failures'
            when t.began + make_interval(secs => b.timeout_seconds) <= now() at time zone 'UTC' then 'timeout'
            when (d.direction = 'MINIMIZE' and t.best <= b.target) or (d.direction = 'MAXIMIZE' and t.best >= b.target)
                then 'target'
        end
        from studyhall.budgets b join study_directions d on d.study_id = b.study_id and d.objective = 0
        where b.study_id = t.study_id
    );
end $$;

-- Whether a study's budget has room for one more running trial. Under the study's row lock.
create function studyhall.has_room(t studyhall.tallies) returns boolean
language plpgsql stable set plan_cache_mode = force_generic_plan as $$
begin
    return coalesce((
        select t.complete + t.pruned + t.running < b.trials and studyhall.ended(t) is null
        from studyhall.budgets b where b.study_id = t.study_id
    ), true);
end $$;

-- End a trial for a reason that is none of its own. Its row and its lease are locked.
create function studyhall.fail(p_trial_id integer, p_reason text) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    insert into trial_user_attributes (trial_id, key, value_json) values (p_trial_id, 'error', to_json(p_reason)::text)
        on conflict (trial_id, key) do update set value_json = excluded.value_json;
    update trials set state = 'FAIL', datetime_complete = now() at time zone 'UTC'
        where trial_id = p_trial_id and state in ('RUNNING', 'WAITING');
    delete from studyhall.checkpoints where trial_id = p_trial_id;
end $$;

-- Requeue a running trial, whose row is locked: RUNNING → WAITING, same row, same number, same parameters. Where
-- its worker died, of p_died_of, it counts, unless the trial has got further than any worker before; a trial on
-- which three died fails, so that it cannot take them all. One that was cancelled fails too. Returns whether
-- somebody held the trial; else it stays as it is.
create function studyhall.requeue(p_trial_id integer, p_died_of text) returns boolean
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    lease studyhall.leases;
    farthest integer;
begin
    select * into lease from studyhall.leases where trial_id = p_trial_id and held for update;
    if not found then
        return false;
    end if;
    if p_died_of is not null then
        select max(i.step) into farthest from trial_intermediate_values i where i.trial_id = p_trial_id;
        lease.lost := case when farthest > coalesce(lease.reached, -1) then 1 else lease.lost + 1 end;
        lease.reached := greatest(farthest, lease.reached);
    end if;
    update studyhall.leases
        set held = false, expires_at = now(), revision = revision + 1, changed = pg_current_xact_id(),
            lost = lease.lost, reached = lease.reached
        where trial_id = p_trial_id;
    if lease.cancelled then
        perform studyhall.fail(p_trial_id, 'cancelled');
    elsif p_died_of is not null and lease.lost >= 3 then
        perform studyhall.fail(p_trial_id, format('%s workers died on this trial, the last: %s', lease.lost, p_died_of));
    else
        update trials set state = 'WAITING' where trial_id = p_trial_id and state = 'RUNNING';
    end if;
    return true;
end $$;

-- Requeue the trials of a study whose workers have been silent for longer than their leases; returns how many.
-- While the server was down no heartbeat could arrive: a lease lasts at least its own time after the server's
-- start. A trial that somebody is at is not waited for.
create function studyhall.sweep(p_study_id integer) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    orphan record;
    swept integer := 0;
begin
    perform set_config('studyhall.own', 'yes', true);
    for orphan in
        select t.trial_id, coalesce(w.host, l.worker_id) as host
        from studyhall.leases l join trials t on t.trial_id = l.trial_id
            left join studyhall.workers w on w.worker_id = l.worker_id
        where l.study_id = p_study_id and l.held and l.expires_at < now() and t.state = 'RUNNING'
            and pg_postmaster_start_time() + make_interval(secs => l.seconds) < now()
        order by t.trial_id for no key update of t skip locked
    loop
        perform from studyhall.leases where trial_id = orphan.trial_id and held and expires_at < now() for update;
        if found then  -- and not renewed while its row was being locked
            perform studyhall.requeue(orphan.trial_id, 'no heartbeat from ' || orphan.host);
            swept := swept + 1;
        end if;
    end loop;
    return swept;
end $$;

-- Requeue the running trials of workers that have ended, where it counts if they died of something; returns how
-- many. Sent again, it finds what it did by its token.
create function studyhall.bury(p_token uuid, p_worker_ids text[], p_died_of text) returns integer
language plpgsql as $$
declare
    orphan integer;
    buried integer := 0;
begin
    perform set_config('studyhall.own', 'yes', true);
    insert into studyhall.requests (token, answer) values (p_token, 0) on conflict do nothing;
    if not found then
        return (select answer from studyhall.requests where token = p_token);
    end if;
    for orphan in
        select t.trial_id from studyhall.leases l join trials t on t.trial_id = l.trial_id
        where t.state = 'RUNNING' and l.held and l.worker_id = any(p_worker_ids)
        order by t.trial_id for no key update of t
    loop
        perform from studyhall.leases where trial_id = orphan and held and worker_id = any(p_worker_ids) for update;
        if found then  -- and not another's by now
            perform studyhall.requeue(orphan, p_died_of);
            buried := buried + 1;
        end if;
    end loop;
    update studyhall.requests set answer = buried where token = p_token;
    return buried;
end $$;

-- A new trial with the next number, which is how many there are; returns its id. Under the study's row lock.
create function studyhall.new_trial(t studyhall.tallies, p_state trialstate) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    created integer;
begin
    insert into trials (study_id, number, state, datetime_start)
        values (t.study_id, t.waiting + t.running + t.complete + t.pruned + t.failed + t.cancelled, p_state,
            case when p_state = 'RUNNING' then now() at time zone 'UTC' end)
        returning trial_id into created;
    return created;
end $$;

-- Give a worker its next trial: one that waits, else a new one, if the budget has room for it. Under the
-- study's row lock, which stock Optuna takes too when it creates a trial. The same claim sent again gets the
-- same trial. It need not be on the disk when it is answered: where a crash of the server loses it, whoever
-- comes next gets the trial, under another claim, and what the first one writes is refused.
create function studyhall.take(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid,
    out trial_id integer,   -- null where there is none
    out epoch integer,
    out reason text         -- then: 'wait' for the running ones, 'paused', or why the study is over
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    t studyhall.tallies;
    budget studyhall.budgets;
begin
    perform set_config('synchronous_commit', 'off', true);
    perform from studies where study_id = p_study_id for no key update;
    if not found then
        reason := 'deleted';
        return;
    end if;
    select l.trial_id, l.epoch into trial_id, epoch
        from studyhall.leases l join trials using (trial_id)
        where l.claim = p_claim and l.held and trials.state = 'RUNNING';
    if found then
        return;
    end if;
    perform studyhall.sweep(p_study_id);

    t := studyhall.count_trials(p_study_id);
    select * into budget from studyhall.budgets where study_id = p_study_id;
    reason := studyhall.ended(t);
    if reason is null and budget.paused then
        reason := 'paused';
    elsif reason is null and t.complete + t.pruned + t.running >= budget.trials then
        reason := 'wait';
    end if;
    if reason is not null then
        return;
    end if;

    update trials set state = 'RUNNING', datetime_start = coalesce(datetime_start, now() at time zone 'UTC')
        where trials.trial_id = (
            select w.trial_id from trials w where w.study_id = p_study_id and w.state = 'WAITING'
            order by w.number limit 1 for no key update skip locked)
        returning trials.trial_id into trial_id;
    if take.trial_id is null then
        trial_id := studyhall.new_trial(t, 'RUNNING');
    end if;
    update studyhall.leases l
        set worker_id = p_worker_id, held = true, step = null, epoch = l.epoch + 1, claim = p_claim,
            revision = l.revision + 1, changed = pg_current_xact_id(), seconds = p_lease_seconds,
            expires_at = now() + make_interval(secs => p_lease_seconds)
        where l.trial_id = take.trial_id returning l.epoch into epoch;
end $$;

-- Take a trial, and read what has changed in the study: one row with the reason where there is none to take, else
-- the changed trials, of which the taken one has an epoch.
create function studyhall.claim(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid,
    p_since pg_snapshot, p_again integer[]
) returns table (reason text, epoch integer, snapshot text, trial studyhall.contents)
language plpgsql as $$
declare
    taken record;
begin
    perform set_config('studyhall.own', 'yes', true);
    taken := studyhall.take(p_study_id, p_worker_id, p_lease_seconds, p_claim);
    if taken.reason is not null then
        return query select taken.reason, null::integer, null, null::studyhall.contents;
        return;
    end if;
    return query select null::text, case when (c.trial).trial_id = taken.trial_id then taken.epoch end, c.snapshot, c.trial
        from studyhall.changes(p_study_id, p_since, p_again || taken.trial_id) c;
end $$;

-- A worker's write to the trial that it holds, which is a heartbeat too. Learns what a person wants of it.
-- It need not be on the disk when it is answered: where the trial's revision is not beyond the one that the
-- worker knows, a crash of the server has lost something, and the worker is asked to write it once more.
create function studyhall.write(
    p_trial_id integer, p_claim uuid, p_revision integer, p_step integer, p_changes jsonb,
    out cancelled boolean,      -- end this trial
    out interrupted boolean,    -- give it back: its study is paused or stopped
    out revision integer
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
    perform set_config('studyhall.own', 'yes', true);
    perform set_config('synchronous_commit', 'off', true);
    perform from trials where trial_id = p_trial_id and state = 'RUNNING' for key share;
    if found then
        update studyhall.leases l
            set expires_at = now() + make_interval(secs => l.seconds), revision = l.revision + 1,
                changed = pg_current_xact_id(), step = coalesce(p_step, l.step)
            where l.trial_id = p_trial_id and l.claim = p_claim and l.held
            returning l.cancelled, exists (
                select from studyhall.budgets b where b.study_id = l.study_id and (b.paused or b.stopped is not null)
            ), l.revision into cancelled, interrupted, revision;
    end if;
    if not found then
        raise exception 'trial % is not held under this claim', p_trial_id using errcode = 'SH001';
    end if;
    if write.revision <= p_revision then
        raise exception 'trial % has lost what was written to it', p_trial_id using errcode = 'SH005';
    end if;
    perform studyhall.put(p_trial_id, p_changes);
end $$;

-- A worker's heartbeat. Requeues the trials of those that are silent. Tells whether connections are scarce, so that
-- a worker should not keep one while it has nothing to say.
create function studyhall.beat(p_worker_id text, out is_crowded boolean)
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    study integer;
begin
    update studyhall.workers set seen_at = now() where worker_id = p_worker_id;
    for study in select unnest(study_ids) from studyhall.workers where worker_id = p_worker_id loop
        perform studyhall.sweep(study);
    end loop;
    select sum(numbackends) > 0.7 * current_setting('max_connections')::integer into is_crowded from pg_stat_database;
end $$;

-- A checkpoint of the trial that a worker holds; keeps the newest two, and returns the names of the others.
create function studyhall.save_checkpoint(
    p_trial_id integer, p_claim uuid, p_sequence integer, p_name text, p_step integer, p_sha256 bytea, p_data bytea
) returns setof text language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    epoch integer;
begin
    perform from trials where trial_id = p_trial_id and state = 'RUNNING' for key share;
    if found then
        select l.epoch into epoch from studyhall.leases l
            where l.trial_id = p_trial_id and l.claim = p_claim and l.held for update;
    end if;
    if not found then
        raise exception 'trial % is not held under this claim', p_trial_id using errcode = 'SH001';
    end if;
    insert into studyhall.checkpoints (trial_id, epoch, sequence, name, step, sha256, data)
        values (p_trial_id, epoch, p_sequence, p_name, p_step, p_sha256, p_data) on conflict do nothing;
    return query delete from studyhall.checkpoints c where c.trial_id = p_trial_id and (c.epoch, c.sequence) not in (
        select n.epoch, n.sequence from studyhall.checkpoints n
        where n.trial_id = p_trial_id order by n.epoch desc, n.sequence desc limit 2
    ) returning c.name;
end $$;

-- A worker's result for the trial that it holds. Sent again, it changes nothing. A trial that was requeued
-- meanwhile, and that nobody has taken, takes the result too, if the budget has room for it.
create function studyhall.finish(
    p_trial_id integer, p_claim uuid, p_revision integer, p_state trialstate, p_values float8[], p_changes jsonb
) returns void language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    study integer;
    expected trialstate;
    was trialstate;
    is_held boolean;
    known integer;
begin
    perform set_config('studyhall.own', 'yes', true);
    select study_id, state into study, expected from trials where trial_id = p_trial_id;
    if expected = 'WAITING' then
        perform from studies where study_id = study for no key update;
    end if;
    select state into was from trials where trial_id = p_trial_id for no key update;
    if was = 'WAITING' and expected <> 'WAITING' then
        -- Requeued this very moment: the study's row has to be locked first.
        raise exception 'trial % was just requeued', p_trial_id using errcode = '40001';
    end if;
    select held, revision into is_held, known
        from studyhall.leases where trial_id = p_trial_id and claim = p_claim for update;
    if not found then
        raise exception 'trial % is not held under this claim', p_trial_id using errcode = 'SH001';
    elsif was = p_state and not is_held then
        return;
    elsif not (was = 'RUNNING' and is_held)
        and not (was = 'WAITING' and studyhall.has_room(studyhall.tally(study))) then
        raise exception 'trial % is %, and not held', p_trial_id, was using errcode = 'SH001';
    elsif known < p_revision then
        raise exception 'trial % has lost what was written to it', p_trial_id using errcode = 'SH005';
    end if;
    update studyhall.leases
        set held = false, expires_at = now(), revision = revision + 1, changed = pg_current_xact_id()
        where trial_id = p_trial_id;
    perform studyhall.put(p_trial_id, p_changes);
    perform studyhall.put_values(p_trial_id, p_values);
    update trials set state = p_state, datetime_complete = now() at time zone 'UTC' where trial_id = p_trial_id;
    delete from studyhall.checkpoints where trial_id = p_trial_id;
end $$;

-- A worker gives back the trial that it holds, unfinished. Sent again, it changes nothing.
create function studyhall.give_back(p_trial_id integer, p_claim uuid, p_changes jsonb) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    perform set_config('studyhall.own', 'yes', true);
    perform from trials where trial_id = p_trial_id and state = 'RUNNING' for no key update;
    if found then
        perform from studyhall.leases where trial_id = p_trial_id and claim = p_claim and held for update;
        if found then
            perform studyhall.put(p_trial_id, p_changes);
            perform studyhall.requeue(p_trial_id, null);
        end if;
    end if;
end $$;

-- Change what may change of a study's budget, once for each token, whatever stopped the study. Where more trials
-- are running than the new budget has room for, the newest are requeued at once: none of them ends any more.
create function studyhall.extend(
    p_token uuid, p_study_id integer, p_trials integer, p_more_trials integer, p_max_failures integer,
    p_timeout float8, p_target float8,
    out finished integer        -- how many are done, where that is more than p_trials: nothing was changed then
) language plpgsql as $$
declare
    t studyhall.tallies;
    budget integer;
    surplus integer[];
    each integer;
begin
    perform set_config('studyhall.own', 'yes', true);
    perform from studies where study_id = p_study_id for no key update;
    insert into studyhall.requests (token, answer) values (p_token, p_study_id) on conflict do nothing;
    if not found then
        return;
    end if;
    t := studyhall.count_trials(p_study_id);
    select coalesce(p_trials, trials) + p_more_trials into budget from studyhall.budgets where study_id = p_study_id;
    if budget < t.complete + t.pruned then
        finished := t.complete + t.pruned;
        return;
    end if;
    update studyhall.budgets set trials = budget, max_failures = coalesce(p_max_failures, max_failures),
        timeout_seconds = coalesce(p_timeout, timeout_seconds), target = coalesce(p_target, target), stopped = null
        where study_id = p_study_id;
    surplus := array(
        select l.trial_id from studyhall.leases l join trials on trials.trial_id = l.trial_id
        where l.study_id = p_study_id and l.held and trials.state = 'RUNNING'
        order by l.trial_id desc limit greatest(0, t.complete + t.pruned + t.running - budget));
    for each in
        select trial_id from trials where trial_id = any(surplus) and state = 'RUNNING'
        order by trial_id for no key update
    loop
        perform studyhall.requeue(each, null);
    end loop;
end $$;

-- A study and all that hangs on it: Optuna's foreign keys do not cascade, so the leaves go first. False where there
-- is no study; sent again, it finds what it did by its token.
create function studyhall.delete_study(p_token uuid, p_study_id integer) returns boolean
language plpgsql as $$
declare
    doomed integer[];
begin
    perform set_config('studyhall.own', 'yes', true);
    perform from studies where study_id = p_study_id for update;
    if not found then
        return exists (select from studyhall.requests where token = p_token);
    end if;
    insert into studyhall.requests (token, answer) values (p_token, p_study_id);
    doomed := array(select trial_id from trials where study_id = p_study_id order by trial_id for update);
    delete from trial_heartbeats where trial_id = any(doomed);
    delete from trial_intermediate_values where trial_id = any(doomed);
    delete from trial_params where trial_id = any(doomed);
    delete from trial_system_attributes where trial_id = any(doomed);
    delete from trial_user_attributes where trial_id = any(doomed);
    delete from trial_values where trial_id = any(doomed);
    delete from study_directions where study_id = p_study_id;
    delete from study_system_attributes where study_id = p_study_id;
    delete from study_user_attributes where study_id = p_study_id;
    delete from trials where study_id = p_study_id;
    delete from studyhall.workers where study_ids = array[p_study_id];
    delete from studies where study_id = p_study_id;
    return true;
end $$;

-- What follows is Optuna's contract, for whoever uses the storage without a lease: the dashboard, a script.

-- Store values of an unfinished trial.
create function studyhall.set(p_trial_id integer, p_changes jsonb) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    perform set_config('studyhall.own', 'yes', true);
    perform studyhall.lock_unfinished(p_trial_id);
    update studyhall.leases set revision = revision + 1, changed = pg_current_xact_id() where trial_id = p_trial_id;
    perform studyhall.put(p_trial_id, p_changes);
end $$;

-- Store one parameter of an unfinished trial. Where the study has it with another distribution already, that is
-- returned for the client to judge, and nothing is stored.
create function studyhall.set_param(p_trial_id integer, p_name text, p_value float8, p_distribution text)
returns text language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    trial record;
    previous text;
begin
    trial := studyhall.lock_unfinished(p_trial_id);
    select distribution_json into previous
        from trial_params p join trials t using (trial_id)
        where p.param_name = p_name and t.study_id = trial.study_id limit 1;
    if previous <> p_distribution then
        return previous;
    end if;
    perform studyhall.set(p_trial_id, jsonb_build_object('params', jsonb_build_array(jsonb_build_object(
        'name', p_name, 'value', p_value, 'distribution', p_distribution))));
    return null;
end $$;

-- Create a trial. Only one that waits is created without regard to the budget.
create function studyhall.create_trial(
    p_token uuid, p_study_id integer, p_state trialstate, p_start timestamp, p_complete timestamp,
    p_values float8[], p_changes jsonb
) returns setof studyhall.contents language plpgsql as $$
declare
    created integer;
    t studyhall.tallies;
begin
    perform set_config('studyhall.own', 'yes', true);
    perform from studies where study_id = p_study_id for no key update;
    if not found then
        raise exception 'no study of id %', p_study_id using errcode = 'P0002';
    end if;
    select answer into created from studyhall.requests where token = p_token;
    if found then
        return query select * from studyhall.contents where trial_id = created;
        return;
    end if;
    t := studyhall.count_trials(p_study_id);
    if p_state in ('RUNNING', 'COMPLETE', 'PRUNED') and not studyhall.has_room(t) then
        raise exception 'the budget has no room' using errcode = 'SH003';
    end if;
    created := studyhall.new_trial(t, p_state);
    if p_start is not null or p_complete is not null then
        perform set_config('studyhall.times', 'given', true);
        update trials set datetime_start = p_start, datetime_complete = p_complete where trial_id = created;
    end if;
    perform studyhall.put_values(created, p_values);
    perform studyhall.put(created, p_changes);
    insert into studyhall.requests (token, answer) values (p_token, created);
    return query select * from studyhall.contents where trial_id = created;
end $$;

-- Set the state of an unfinished trial, and its values. False where RUNNING was asked for and the trial is
-- not waiting, or the budget has no room for it.
create function studyhall.set_state(p_token uuid, p_trial_id integer, p_state trialstate, p_values float8[])
returns boolean language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    trial record;
    done integer;
begin
    perform set_config('studyhall.own', 'yes', true);
    select answer into done from studyhall.requests where token = p_token;
    if found then
        return done = 1;
    end if;
    if p_state = 'RUNNING' then
        perform from studies where study_id = (select study_id from trials where trial_id = p_trial_id) for no key update;
    end if;
    trial := studyhall.lock_unfinished(p_trial_id);
    done := (p_state <> 'RUNNING'
        or (trial.state = 'WAITING' and studyhall.has_room(studyhall.tally(trial.study_id))))::integer;
    if done = 1 then
        update studyhall.leases set held = false, revision = revision + 1, changed = pg_current_xact_id()
            where trial_id = p_trial_id;
        perform studyhall.put_values(p_trial_id, p_values);
        update trials set state = p_state,
            datetime_start = case when p_state = 'RUNNING' then now() at time zone 'UTC' else datetime_start end,
            datetime_complete = case when p_state in ('COMPLETE', 'PRUNED', 'FAIL') then now() at time zone 'UTC' end
            where trial_id = p_trial_id;
    end if;
    insert into studyhall.requests (token, answer) values (p_token, done);
    return done = 1;
end $$;

-- What a person wants of a trial.

-- End a trial: at its next step where a worker of ours runs it, else at once. A finished one stays as it is: a
-- failure that was marked as cancelled would no longer count.
create function studyhall.cancel(p_trial_id integer) returns void
language plpgsql as $$
declare
    is_held boolean;
begin
    perform set_config('studyhall.own', 'yes', true);
    perform from trials where trial_id = p_trial_id and state in ('RUNNING', 'WAITING') for no key update;
    if not found then
        return;
    end if;
    update studyhall.leases set cancelled = true, revision = revision + 1, changed = pg_current_xact_id()
        where trial_id = p_trial_id returning held into is_held;
    if not is_held then
        perform studyhall.fail(p_trial_id, 'cancelled');
    end if;
end $$;

select studyhall.count_trials(study_id) from studies;
