-- What a trial and a worker do to the database, each in one statement. They are functions, because a
-- function's statements see what was committed before a lock was granted, which those of one bare statement
-- do not, and because the server keeps their plans without any state of the session's.
--
-- Where every query of a function goes by a key, its plans are made once in a session: as a rule the server
-- plans them anew each time where arrays are about, which costs more than they do.
--
-- Errors that the client knows by their SQLSTATE:
--   P0002 no such study or trial     SH001 the lease is not the caller's
--   SH002 the trial is finished      SH003 the budget has no room
--   SH004 the time is local and not UTC
--   SH005 a crash of the server has lost what the caller wrote

-- The contents of trials as JSON texts; null where there is none. Attributes are JSON already, of Python's
-- kind, which may hold NaN.
create view studyhall.contents as
select t.trial_id, t.study_id, t.number, t.state::text as state, t.datetime_start, t.datetime_complete,
    (select revision from studyhall.leases l where l.trial_id = t.trial_id) as revision,
    (select json_agg(case value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else value end
        order by objective)::text from trial_values v where v.trial_id = t.trial_id) as "values",
    (select json_agg(json_build_array(param_name, param_value, distribution_json) order by param_id)::text
        from trial_params p where p.trial_id = t.trial_id) as params,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',' order by trial_user_attribute_id) || '}'
        from trial_user_attributes a where a.trial_id = t.trial_id) as user_attrs,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',' order by trial_system_attribute_id) || '}'
        from trial_system_attributes a where a.trial_id = t.trial_id) as system_attrs,
    (select '[' || string_agg(
            step || ',' || case intermediate_value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity'
                when 'NAN' then 'NaN' else intermediate_value::text end, ',' order by step) || ']'
        from trial_intermediate_values i where i.trial_id = t.trial_id) as reports
from trials t;

-- These trials, but for those that have the revision that the client knows.
create function studyhall.contents_of(p_trial_ids integer[], p_revisions integer[])
returns setof studyhall.contents language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    return query select c.* from unnest(p_trial_ids, p_revisions) as known (id, revision)
        join studyhall.contents c on c.trial_id = known.id
        where c.revision is distinct from known.revision or c.revision is null;
end $$;

-- The trials of a study that a client does not know as they are: those after p_after, and of the unfinished
-- ones that it knows those with another revision. A stock Optuna worker's have none and always come.
create function studyhall.changes(p_study_id integer, p_after integer, p_known integer[], p_revisions integer[])
returns setof studyhall.contents language plpgsql as $$
declare
    newer integer[];
begin
    perform from studies where study_id = p_study_id;
    if not found then
        raise exception 'no study of id %', p_study_id using errcode = 'P0002';
    end if;
    -- By themselves, so that this query, whose best plan depends on p_after, is all that is planned anew.
    newer := array(select t.trial_id from trials t where t.study_id = p_study_id and t.trial_id > p_after);
    if cardinality(newer) + cardinality(p_known) > 0 then
        return query select * from studyhall.contents_of(p_known || newer, p_revisions);
    end if;
end $$;

-- Store values of a trial: a list of JSON objects under each of params, reports, user_attrs, system_attrs and
-- metrics. What was stored before under the same name or step gives way, but for metrics, which stay.
create function studyhall.put(p_trial_id integer, p_changes jsonb) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    if p_changes = '{}' then
        return;
    end if;
    if p_changes ? 'params' then
        insert into trial_params (trial_id, param_name, param_value, distribution_json)
            select p_trial_id, name, value, distribution
            from jsonb_to_recordset(p_changes -> 'params') as p (name text, value float8, distribution text)
            on conflict (trial_id, param_name) do update
                set param_value = excluded.param_value, distribution_json = excluded.distribution_json;
    end if;
    if p_changes ? 'reports' then
        insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
            select p_trial_id, step, case when value > '-Infinity' and value < 'Infinity' then value end,
                (case value when 'Infinity' then 'INF_POS' when '-Infinity' then 'INF_NEG' when 'NaN' then 'NAN'
                    else 'FINITE' end)::trialintermediatevaluetype
            from jsonb_to_recordset(p_changes -> 'reports') as r (step integer, value float8)
            on conflict (trial_id, step) do update set
                intermediate_value = excluded.intermediate_value,
                intermediate_value_type = excluded.intermediate_value_type;
    end if;
    if p_changes ? 'user_attrs' then
        insert into trial_user_attributes (trial_id, key, value_json)
            select p_trial_id, key, value from jsonb_to_recordset(p_changes -> 'user_attrs') as a (key text, value text)
            on conflict (trial_id, key) do update set value_json = excluded.value_json;
    end if;
    if p_changes ? 'system_attrs' then
        insert into trial_system_attributes (trial_id, key, value_json)
            select p_trial_id, key, value from jsonb_to_recordset(p_changes -> 'system_attrs') as a (key text, value text)
            on conflict (trial_id, key) do update set value_json = excluded.value_json;
    end if;
    if p_changes ? 'metrics' then
        insert into studyhall.metrics (trial_id, step, name, value)
            select p_trial_id, step, name, value
            from jsonb_to_recordset(p_changes -> 'metrics') as m (step integer, name text, value float8)
            on conflict do nothing;
    end if;
end $$;

create function studyhall.put_values(p_trial_id integer, p_values float8[]) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    if p_values is not null then
        insert into trial_values (trial_id, objective, value, value_type)
            select p_trial_id, position - 1, case when v > '-Infinity' and v < 'Infinity' then v end,
                (case v when 'Infinity' then 'INF_POS' when '-Infinity' then 'INF_NEG' else 'FINITE' end)::trialvaluetype
            from unnest(p_values) with ordinality as u (v, position)
            on conflict (trial_id, objective) do update set value = excluded.value, value_type = excluded.value_type;
    end if;
end $$;

-- The budget: how many trials of a study are finished (COMPLETE + PRUNED), failed and running, when the first
-- began, and the best value. What is settled in the row of the budget, and what came after that. Cancelled
-- trials are no failures.
create function studyhall.tally(
    p_study_id integer,
    out finished integer, out failed integer, out running integer, out began timestamp, out best float8,
    out settled integer, out settled_finished integer, out settled_failed integer, out settled_best float8
) language plpgsql stable as $$
#variable_conflict use_column
declare
    b studyhall.budgets;
    minimize boolean;
begin
    select * into b from studyhall.budgets where study_id = p_study_id;
    select direction = 'MINIMIZE' into minimize from study_directions where study_id = p_study_id and objective = 0;
    with newer as (
        select t.trial_id, t.state, t.datetime_start, coalesce(l.cancelled, false) as cancelled,
            t.trial_id < min(t.trial_id) filter (where t.state in ('RUNNING', 'WAITING')) over () as is_settled,
            case v.value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else v.value end as value
        from trials t
        left join studyhall.leases l using (trial_id)
        left join trial_values v on v.trial_id = t.trial_id and v.objective = 0 and t.state = 'COMPLETE'
        where t.study_id = p_study_id and t.trial_id > coalesce(b.settled, 0)
    )
    select
        coalesce(b.finished, 0) + count(*) filter (where state in ('COMPLETE', 'PRUNED')),
        coalesce(b.failed, 0) + count(*) filter (where state = 'FAIL' and not cancelled),
        count(*) filter (where state = 'RUNNING'),
        least(b.began, min(datetime_start)),
        case when minimize then least(b.best, min(value)) else greatest(b.best, max(value)) end,
        coalesce(max(trial_id) filter (where is_settled is not false), b.settled, 0),
        coalesce(b.finished, 0) + count(*) filter (where state in ('COMPLETE', 'PRUNED') and is_settled is not false),
        coalesce(b.failed, 0) + count(*) filter (where state = 'FAIL' and not cancelled and is_settled is not false),
        case when minimize then least(b.best, min(value) filter (where is_settled is not false))
            else greatest(b.best, max(value) filter (where is_settled is not false)) end
    into finished, failed, running, began, best, settled, settled_finished, settled_failed, settled_best
    from newer;
end $$;

-- Why a study begins no more trials, or null where it does. Takes what studyhall.tally counted; the columns of
-- the same names hold what is settled alone, and would come first.
create function studyhall.ended(p_study_id integer, finished integer, failed integer, began timestamp, best float8)
returns text language sql stable as $$
    select case
        when ended.finished >= b.trials then 'complete'
        when b.stopped is not null then b.stopped
        when ended.failed >= b.max_failures then 'failures'
        when ended.began + make_interval(secs => b.timeout_seconds) <= now() at time zone 'UTC' then 'timeout'
        when (d.direction = 'MINIMIZE' and ended.best <= target) or (d.direction = 'MAXIMIZE' and ended.best >= target) then 'target'
    end
    from studyhall.budgets b join study_directions d on d.study_id = b.study_id and d.objective = 0
    where b.study_id = p_study_id
$$;

-- Whether a study's budget has room for one more running trial. Under the study's row lock.
create function studyhall.has_room(p_study_id integer) returns boolean
language sql as $$
    select coalesce(
        (select t.finished + t.running < b.trials
            and studyhall.ended(p_study_id, t.finished, t.failed, t.began, t.best) is null
        from studyhall.budgets b, studyhall.tally(p_study_id) t where b.study_id = p_study_id), true)
$$;

-- End a trial for a reason that is none of its own.
create function studyhall.fail(p_trial_id integer, p_reason text) returns void
language plpgsql as $$
begin
    insert into trial_user_attributes (trial_id, key, value_json) values (p_trial_id, 'error', to_json(p_reason)::text)
        on conflict (trial_id, key) do update set value_json = excluded.value_json;
    update trials set state = 'FAIL', datetime_complete = now() at time zone 'UTC'
        where trial_id = p_trial_id and state in ('RUNNING', 'WAITING');
    delete from studyhall.checkpoints where trial_id = p_trial_id;
end $$;

-- Give a running trial back: RUNNING → WAITING, same row, same number, same parameters. Where its worker
-- died, of p_died_of, it counts, unless the trial has got further than any worker before; a trial on which
-- three died fails, so that it cannot take them all. One that was cancelled fails too.
create function studyhall.requeue(p_trial_id integer, p_died_of text) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    lease studyhall.leases;
    farthest integer;
begin
    select * into lease from studyhall.leases where trial_id = p_trial_id for update;
    if p_died_of is not null then
        select max(i.step) into farthest from trial_intermediate_values i where i.trial_id = p_trial_id;
        lease.lost := case when farthest > coalesce(lease.reached, -1) then 1 else lease.lost + 1 end;
        lease.reached := greatest(farthest, lease.reached);
    end if;
    update studyhall.leases
        set held = false, expires_at = now(), revision = revision + 1, lost = lease.lost, reached = lease.reached
        where trial_id = p_trial_id;
    if lease.cancelled then
        perform studyhall.fail(p_trial_id, 'cancelled');
    elsif p_died_of is not null and lease.lost >= 3 then
        perform studyhall.fail(p_trial_id, format('%s workers died on this trial, the last: %s', lease.lost, p_died_of));
    else
        update trials set state = 'WAITING' where trial_id = p_trial_id and state = 'RUNNING';
    end if;
end $$;

-- Give back the trials of a study whose workers have been silent for longer than their leases; returns how
-- many. While the server was down nobody could give a sign of life: a lease lasts at least its own time after
-- the server's start.
create function studyhall.sweep(p_study_id integer) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    orphan record;
    swept integer := 0;
begin
    for orphan in
        select l.trial_id, coalesce(w.host, l.worker_id) as host
        from studyhall.leases l join trials t on t.trial_id = l.trial_id
            left join studyhall.workers w on w.worker_id = l.worker_id
        where t.study_id = p_study_id and t.state = 'RUNNING' and l.held and l.expires_at < now()
            and pg_postmaster_start_time() + make_interval(secs => l.seconds) < now()
            and t.trial_id > coalesce((select settled from studyhall.budgets where study_id = p_study_id), 0)
        for update of l skip locked
    loop
        perform studyhall.requeue(orphan.trial_id, 'no sign of life from ' || orphan.host);
        swept := swept + 1;
    end loop;
    return swept;
end $$;

-- Give back the running trials of workers that have ended, where it counts if they died of something; returns
-- how many. Sent again, it finds what it did by its token.
create function studyhall.bury(p_token uuid, p_worker_ids text[], p_died_of text) returns integer
language plpgsql as $$
declare
    orphan integer;
    buried integer := 0;
begin
    insert into studyhall.requests (token, answer) values (p_token, 0) on conflict do nothing;
    if not found then
        return (select answer from studyhall.requests where token = p_token);
    end if;
    for orphan in
        select l.trial_id from studyhall.leases l join trials t on t.trial_id = l.trial_id
        where t.state = 'RUNNING' and l.held and l.worker_id = any(p_worker_ids)
        for update of l
    loop
        perform studyhall.requeue(orphan, p_died_of);
        buried := buried + 1;
    end loop;
    update studyhall.requests set answer = buried where token = p_token;
    return buried;
end $$;

-- A new trial with the next number; returns its id. Under the study's row lock.
create function studyhall.new_trial(p_study_id integer, p_state trialstate) returns integer
language sql as $$
    insert into trials (study_id, number, state, datetime_start)
        values (
            p_study_id,
            coalesce((select t.number + 1 from trials t where t.study_id = p_study_id order by t.trial_id desc limit 1), 0),
            p_state,
            case when p_state = 'RUNNING' then now() at time zone 'UTC' end
        )
        returning trials.trial_id
$$;

-- Give a worker its next trial: one that waits, else a new one, if the budget has room for it. Under the
-- study's row lock, which stock Optuna takes too when it creates a trial. The same claim sent again gets the
-- same trial. It need not be on the disk when it is answered: where a crash of the server loses it, whoever
-- comes next gets the trial, under another claim, and what the first one writes is refused.
create function studyhall.take(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid,
    out trial_id integer,   -- null where there is none
    out epoch integer,
    out reason text         -- then: 'wait' for the running ones, 'paused', or why the study is over
) language plpgsql as $$
#variable_conflict use_column
declare
    t record;
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

    t := studyhall.tally(p_study_id);
    update studyhall.budgets b set settled = t.settled, finished = t.settled_finished, failed = t.settled_failed,
        best = t.settled_best, began = t.began
        where study_id = p_study_id returning * into budget;
    reason := studyhall.ended(p_study_id, t.finished, t.failed, t.began, t.best);
    if reason is null and budget.paused then
        reason := 'paused';
    elsif reason is null and t.finished + t.running >= budget.trials then
        reason := 'wait';
    end if;
    if reason is not null then
        return;
    end if;

    update trials set state = 'RUNNING', datetime_start = coalesce(datetime_start, now() at time zone 'UTC')
        where trials.trial_id = (
            select w.trial_id from trials w
            where w.study_id = p_study_id and w.state = 'WAITING' and w.trial_id > budget.settled
            order by w.number limit 1 for update skip locked)
        returning trials.trial_id into trial_id;
    if take.trial_id is null then
        trial_id := studyhall.new_trial(p_study_id, 'RUNNING');
    end if;

    insert into studyhall.leases as l (trial_id, worker_id, claim, seconds, expires_at)
        values (take.trial_id, p_worker_id, p_claim, p_lease_seconds, now() + make_interval(secs => p_lease_seconds))
        on conflict (trial_id) do update set worker_id = excluded.worker_id, held = true, step = null, epoch = l.epoch + 1,
            claim = excluded.claim, revision = l.revision + 1, seconds = excluded.seconds, expires_at = excluded.expires_at
        returning l.epoch into epoch;
end $$;

-- Take a trial, and look at what has changed in the study meanwhile: one row with the reason where there is
-- none to take, else the changed trials, of which the taken one has an epoch.
create function studyhall.claim(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid,
    p_after integer, p_known integer[], p_revisions integer[]
) returns table (reason text, epoch integer, trial studyhall.contents) language plpgsql as $$
declare
    taken record;
begin
    taken := studyhall.take(p_study_id, p_worker_id, p_lease_seconds, p_claim);
    if taken.reason is not null then
        return query select taken.reason, null::integer, null::studyhall.contents;
        return;
    end if;
    return query select null::text, case when c.trial_id = taken.trial_id then taken.epoch end, c
        from studyhall.changes(p_study_id, p_after, p_known, p_revisions) c;
end $$;

-- A worker's write to the trial that it holds, which is a sign of life too. Learns what a person wants of it.
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
    perform set_config('synchronous_commit', 'off', true);
    update studyhall.leases l
        set expires_at = now() + make_interval(secs => l.seconds), revision = l.revision + 1, step = coalesce(p_step, l.step)
        from trials t
        where l.trial_id = p_trial_id and l.claim = p_claim and l.held
            and t.trial_id = l.trial_id and t.state = 'RUNNING'
        returning l.cancelled, exists (
            select from studyhall.budgets b where b.study_id = t.study_id and (b.paused or b.stopped is not null)
        ), l.revision into cancelled, interrupted, revision;
    if not found then
        raise exception 'trial % is not held under this claim', p_trial_id using errcode = 'SH001';
    end if;
    if write.revision <= p_revision then
        raise exception 'trial % has lost what was written to it', p_trial_id using errcode = 'SH005';
    end if;
    perform studyhall.put(p_trial_id, p_changes);
end $$;

-- A worker is alive. Gives back the trials of those that are not. Tells whether connections are scarce, so that
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
    select l.epoch into epoch from studyhall.leases l join trials t using (trial_id)
        where trial_id = p_trial_id and l.claim = p_claim and held and t.state = 'RUNNING' for update of l;
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

-- A worker's result for the trial that it holds. Sent again, it changes nothing. A trial that was given back
-- meanwhile, and that nobody has taken, takes the result too, if the budget has room for it.
create function studyhall.finish(
    p_trial_id integer, p_claim uuid, p_revision integer, p_state trialstate, p_values float8[], p_changes jsonb
) returns void language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    study integer;
    was trialstate;
    is_held boolean;
    known integer;
begin
    select study_id into study from trials where trial_id = p_trial_id and state = 'WAITING';
    if found then
        perform from studies where study_id = study for no key update;
    end if;
    select t.study_id, t.state, l.held, l.revision into study, was, is_held, known
        from studyhall.leases l join trials t using (trial_id)
        where l.trial_id = p_trial_id and l.claim = p_claim for update;
    if not found then
        raise exception 'trial % is not held under this claim', p_trial_id using errcode = 'SH001';
    elsif was = p_state and not is_held then
        return;
    elsif not (was = 'RUNNING' and is_held) and not (was = 'WAITING' and studyhall.has_room(study)) then
        raise exception 'trial % is %, and not held', p_trial_id, was using errcode = 'SH001';
    elsif known < p_revision then
        raise exception 'trial % has lost what was written to it', p_trial_id using errcode = 'SH005';
    end if;
    perform studyhall.put(p_trial_id, p_changes);
    perform studyhall.put_values(p_trial_id, p_values);
    update trials set state = p_state, datetime_complete = now() at time zone 'UTC' where trial_id = p_trial_id;
    update studyhall.leases set held = false, expires_at = now(), revision = revision + 1 where trial_id = p_trial_id;
    delete from studyhall.checkpoints where trial_id = p_trial_id;
end $$;

-- A worker gives back the trial that it holds, unfinished. Sent again, it changes nothing.
create function studyhall.give_back(p_trial_id integer, p_claim uuid, p_changes jsonb) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    perform from studyhall.leases l join trials t using (trial_id)
        where trial_id = p_trial_id and l.claim = p_claim and held and t.state = 'RUNNING' for update of l;
    if found then
        perform studyhall.put(p_trial_id, p_changes);
        perform studyhall.requeue(p_trial_id, null);
    end if;
end $$;

-- What follows is Optuna's contract, for whoever uses the storage without a lease: the dashboard, a script.

-- The state of a trial, locked against others.
create function studyhall.lock_unfinished(p_trial_id integer, out study_id integer, out state trialstate)
language plpgsql as $$
#variable_conflict use_column
begin
    select t.study_id, t.state into study_id, state from trials t where t.trial_id = p_trial_id for no key update;
    if not found then
        raise exception 'no trial of id %', p_trial_id using errcode = 'P0002';
    elsif state not in ('RUNNING', 'WAITING') then
        raise exception 'trial of id % is finished', p_trial_id using errcode = 'SH002';
    end if;
end $$;

-- Store values of an unfinished trial.
create function studyhall.set(p_trial_id integer, p_changes jsonb) returns void
language plpgsql as $$
begin
    perform studyhall.lock_unfinished(p_trial_id);
    perform studyhall.put(p_trial_id, p_changes);
    update studyhall.leases set revision = revision + 1 where trial_id = p_trial_id;
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
begin
    perform from studies where study_id = p_study_id for no key update;
    if not found then
        raise exception 'no study of id %', p_study_id using errcode = 'P0002';
    end if;
    select answer into created from studyhall.requests where token = p_token;
    if found then
        return query select * from studyhall.contents where trial_id = created;
        return;
    end if;
    if p_state in ('RUNNING', 'COMPLETE', 'PRUNED') and not studyhall.has_room(p_study_id) then
        raise exception 'the budget has no room' using errcode = 'SH003';
    end if;
    created := studyhall.new_trial(p_study_id, p_state);
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
    select answer into done from studyhall.requests where token = p_token;
    if found then
        return done = 1;
    end if;
    if p_state = 'RUNNING' then
        perform from studies where study_id = (select study_id from trials where trial_id = p_trial_id) for no key update;
    end if;
    trial := studyhall.lock_unfinished(p_trial_id);
    done := (p_state <> 'RUNNING' or (trial.state = 'WAITING' and studyhall.has_room(trial.study_id)))::integer;
    if done = 1 then
        perform studyhall.put_values(p_trial_id, p_values);
        update trials set state = p_state,
            datetime_start = case when p_state = 'RUNNING' then now() at time zone 'UTC' else datetime_start end,
            datetime_complete = case when p_state in ('COMPLETE', 'PRUNED', 'FAIL') then now() at time zone 'UTC' end
            where trial_id = p_trial_id;
        update studyhall.leases set held = false, revision = revision + 1 where trial_id = p_trial_id;
    end if;
    insert into studyhall.requests (token, answer) values (p_token, done);
    return done = 1;
end $$;

-- What a person wants of a trial.

-- End a trial: at its next step where a worker of ours runs it, else at once. A finished one stays as it is.
create function studyhall.cancel(p_trial_id integer) returns void language plpgsql as $$
declare
    before text;
begin
    select state::text into before from trials where trial_id = p_trial_id;
    if before not in ('RUNNING', 'WAITING') then
        return;  -- a failure that was marked as cancelled would no longer count
    end if;
    insert into studyhall.leases as l (trial_id, worker_id, held, epoch, cancelled, seconds, expires_at)
        values (p_trial_id, '', false, 0, true, 0, now())
        on conflict (trial_id) do update set cancelled = true, revision = l.revision + 1;
    select state::text into before from trials where trial_id = p_trial_id for no key update;
    if before = 'WAITING' or (before = 'RUNNING' and not exists (
        select from studyhall.leases where trial_id = p_trial_id and held)) then
        perform studyhall.fail(p_trial_id, 'cancelled');
    end if;
end $$;

-- Optuna 4 writes local times where Optuna 5 and we write UTC, into the same columns of the same schema
-- version. One of its workers shows itself by a "now" that is a time zone away, and is refused before it has
-- mixed the two.
create function studyhall.refuse_local_times() returns trigger language plpgsql as $$
declare
    seconds double precision := abs(extract(epoch from
        coalesce(new.datetime_complete, new.datetime_start) - now() at time zone 'UTC'));
begin
    -- Zones lie whole quarters of an hour apart, up to 14 hours; clocks go wrong by less.
    if seconds between 1500 and 52200 and abs(seconds - 900 * round(seconds / 900)) < 120
        and coalesce(current_setting('studyhall.times', true), '') <> 'given' then
        raise exception 'a time that is % hours away from UTC: Optuna 4 and older write local times; '
            'use Optuna 5 or newer with this database', round((seconds / 3600)::numeric, 2) using errcode = 'SH004';
    end if;
    return new;
end $$;

create trigger studyhall_refuse_local_times_of_new before insert on trials
    for each row when (new.state = 'RUNNING' and new.datetime_complete is null)
    execute function studyhall.refuse_local_times();
create trigger studyhall_refuse_local_times before update on trials
    for each row when (
        (new.datetime_complete is distinct from old.datetime_complete and new.datetime_complete is not null)
        or (old.state = 'WAITING' and new.state = 'RUNNING' and new.datetime_start is distinct from old.datetime_start)
    ) execute function studyhall.refuse_local_times();
