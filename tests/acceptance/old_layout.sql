

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

CREATE SCHEMA studyhall;

CREATE TYPE public.studydirection AS ENUM (
    'NOT_SET',
    'MINIMIZE',
    'MAXIMIZE'
);

CREATE TYPE public.trialintermediatevaluetype AS ENUM (
    'FINITE',
    'INF_POS',
    'INF_NEG',
    'NAN'
);

CREATE TYPE public.trialstate AS ENUM (
    'RUNNING',
    'COMPLETE',
    'PRUNED',
    'FAIL',
    'WAITING'
);

CREATE TYPE public.trialvaluetype AS ENUM (
    'FINITE',
    'INF_POS',
    'INF_NEG'
);

CREATE FUNCTION studyhall.address(p_study_id integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog'
    AS $$
    select url from studyhall.addresses
    where study_id = p_study_id and has_table_privilege(session_user, 'studyhall.addresses', 'select')
$$;

CREATE FUNCTION studyhall.beat(p_worker_id text, OUT is_crowded boolean) RETURNS boolean
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    study integer;
begin
    update studyhall.workers set seen_at = now() where worker_id = p_worker_id;
    for study in select unnest(study_ids) from studyhall.workers where worker_id = p_worker_id loop
        perform studyhall.sweep(study);
    end loop;
    select sum(numbackends) > 0.7 * current_setting('max_connections')::integer into is_crowded from pg_stat_database;
end $$;

CREATE FUNCTION studyhall.bury(p_token uuid, p_worker_ids text[], p_died_of text) RETURNS integer
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION studyhall.cancel(p_trial_id integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
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

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE public.trial_intermediate_values (
    trial_intermediate_value_id integer NOT NULL,
    trial_id integer NOT NULL,
    step integer NOT NULL,
    intermediate_value double precision,
    intermediate_value_type public.trialintermediatevaluetype NOT NULL
);

CREATE TABLE public.trial_params (
    param_id integer NOT NULL,
    trial_id integer,
    param_name character varying(512),
    param_value double precision,
    distribution_json text
);

CREATE TABLE public.trial_system_attributes (
    trial_system_attribute_id integer NOT NULL,
    trial_id integer,
    key character varying(512),
    value_json text
);

CREATE TABLE public.trial_user_attributes (
    trial_user_attribute_id integer NOT NULL,
    trial_id integer,
    key character varying(512),
    value_json text
);

CREATE TABLE public.trial_values (
    trial_value_id integer NOT NULL,
    trial_id integer NOT NULL,
    objective integer NOT NULL,
    value double precision,
    value_type public.trialvaluetype NOT NULL
);

CREATE TABLE public.trials (
    trial_id integer NOT NULL,
    number integer,
    study_id integer,
    state public.trialstate NOT NULL,
    datetime_start timestamp without time zone,
    datetime_complete timestamp without time zone
);

CREATE VIEW studyhall.contents AS
 SELECT t.trial_id,
    t.study_id,
    t.number,
    (t.state)::text AS state,
    t.datetime_start,
    t.datetime_complete,
    ( SELECT string_agg(
                CASE v.value_type
                    WHEN 'INF_POS'::public.trialvaluetype THEN 'Infinity'::text
                    WHEN 'INF_NEG'::public.trialvaluetype THEN '-Infinity'::text
                    ELSE (v.value)::text
                END, ','::text ORDER BY v.objective) AS string_agg
           FROM public.trial_values v
          WHERE (v.trial_id = t.trial_id)) AS "values",
    ( SELECT string_agg((((((to_json(p.param_name))::text || ''::text) || p.param_value) || ''::text) || p.distribution_json), ''::text ORDER BY p.param_id) AS string_agg
           FROM public.trial_params p
          WHERE (p.trial_id = t.trial_id)) AS params,
    ( SELECT (('{'::text || string_agg((((to_json(a.key))::text || ':'::text) || a.value_json), ','::text ORDER BY a.trial_user_attribute_id)) || '}'::text)
           FROM public.trial_user_attributes a
          WHERE (a.trial_id = t.trial_id)) AS user_attrs,
    ( SELECT (('{'::text || string_agg((((to_json(a.key))::text || ':'::text) || a.value_json), ','::text ORDER BY a.trial_system_attribute_id)) || '}'::text)
           FROM public.trial_system_attributes a
          WHERE (a.trial_id = t.trial_id)) AS system_attrs,
    r.steps,
    r.reports
   FROM public.trials t,
    LATERAL ( SELECT string_agg(int4send(i.step), '\x'::bytea ORDER BY i.step) AS steps,
            string_agg(float8send(
                CASE i.intermediate_value_type
                    WHEN 'INF_POS'::public.trialintermediatevaluetype THEN 'Infinity'::double precision
                    WHEN 'INF_NEG'::public.trialintermediatevaluetype THEN '-Infinity'::double precision
                    WHEN 'NAN'::public.trialintermediatevaluetype THEN 'NaN'::double precision
                    ELSE i.intermediate_value
                END), '\x'::bytea ORDER BY i.step) AS reports
           FROM public.trial_intermediate_values i
          WHERE (i.trial_id = t.trial_id)) r;

CREATE FUNCTION studyhall.changes(p_study_id integer, p_since pg_snapshot, p_again integer[]) RETURNS TABLE(snapshot text, trial studyhall.contents)
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.claim(p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid, p_most integer, p_since pg_snapshot, p_again integer[]) RETURNS TABLE(reason text, epoch integer, snapshot text, trial studyhall.contents)
    LANGUAGE plpgsql
    AS $$
declare
    taken record;
begin
    perform set_config('studyhall.own', 'yes', true);
    taken := studyhall.take(p_study_id, p_worker_id, p_lease_seconds, p_claim, p_most);
    if taken.reason is not null then
        return query select taken.reason, null::integer, null, null::studyhall.contents;
        return;
    end if;
    return query select null::text, case when (c.trial).trial_id = taken.trial_id then taken.epoch end, c.snapshot, c.trial
        from studyhall.changes(p_study_id, p_since, p_again || taken.trial_id) c;
end $$;

CREATE TABLE studyhall.tallies (
    study_id integer NOT NULL,
    waiting integer NOT NULL,
    running integer NOT NULL,
    complete integer NOT NULL,
    pruned integer NOT NULL,
    failed integer NOT NULL,
    cancelled integer NOT NULL,
    began timestamp without time zone,
    best double precision
);

CREATE FUNCTION studyhall.count_trials(p_study_id integer) RETURNS studyhall.tallies
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE TABLE studyhall.transitions (
    study_id integer NOT NULL,
    trial_id integer NOT NULL,
    was public.trialstate,
    became public.trialstate
);

CREATE FUNCTION studyhall.counted(p_study_id integer, p_transitions studyhall.transitions[]) RETURNS studyhall.tallies
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.create_trial(p_token uuid, p_study_id integer, p_state public.trialstate, p_start timestamp without time zone, p_complete timestamp without time zone, p_values double precision[], p_changes jsonb) RETURNS SETOF studyhall.contents
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION studyhall.delete_study(p_token uuid, p_study_id integer) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION studyhall.ended(t studyhall.tallies) RETURNS text
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.extend(p_token uuid, p_study_id integer, p_trials integer, p_more_trials integer, p_max_failures integer, p_timeout double precision, p_target double precision, OUT finished integer) RETURNS integer
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION studyhall.fail(p_trial_id integer, p_reason text) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    insert into trial_user_attributes (trial_id, key, value_json) values (p_trial_id, 'error', to_json(p_reason)::text)
        on conflict (trial_id, key) do update set value_json = excluded.value_json;
    update trials set state = 'FAIL', datetime_complete = now() at time zone 'UTC'
        where trial_id = p_trial_id and state in ('RUNNING', 'WAITING');
    delete from studyhall.checkpoints where trial_id = p_trial_id;
end $$;

CREATE FUNCTION studyhall.finish(p_trial_id integer, p_claim uuid, p_revision integer, p_state public.trialstate, p_values double precision[], p_changes jsonb) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.forget_study() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog'
    AS $$
begin
    delete from studyhall.transitions where study_id = old.study_id;
    return null;
end $$;

CREATE FUNCTION studyhall.give_back(p_trial_id integer, p_claim uuid, p_changes jsonb) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.has_room(t studyhall.tallies) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    return coalesce((
        select t.complete + t.pruned + t.running < b.trials and studyhall.ended(t) is null
        from studyhall.budgets b where b.study_id = t.study_id
    ), true);
end $$;

CREATE FUNCTION studyhall.lock_unfinished(p_trial_id integer, OUT study_id integer, OUT state public.trialstate) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
begin
    select t.study_id, t.state into study_id, state from trials t where t.trial_id = p_trial_id for no key update;
    if not found then
        raise exception 'no trial of id %', p_trial_id using errcode = 'P0002';
    elsif state not in ('RUNNING', 'WAITING') then
        raise exception 'trial of id % is finished', p_trial_id using errcode = 'SH002';
    end if;
end $$;

CREATE FUNCTION studyhall.new_trial(t studyhall.tallies, p_state public.trialstate) RETURNS integer
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    created integer;
begin
    insert into trials (study_id, number, state, datetime_start)
        values (t.study_id, t.waiting + t.running + t.complete + t.pruned + t.failed + t.cancelled, p_state,
            case when p_state = 'RUNNING' then now() at time zone 'UTC' end)
        returning trial_id into created;
    return created;
end $$;

CREATE FUNCTION studyhall.note_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog'
    AS $_$
begin
    execute format('select from %I.trials where trial_id = $1 for key share', tg_table_schema) using new.trial_id;
    update studyhall.leases set changed = pg_current_xact_id(), revision = revision + 1
        where trial_id = new.trial_id and changed <> pg_current_xact_id();
    return new;
end $_$;

CREATE FUNCTION studyhall.note_state() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog'
    AS $$
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

CREATE FUNCTION studyhall.put(p_trial_id integer, p_changes jsonb) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.put_values(p_trial_id integer, p_values double precision[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    if p_values is not null then
        insert into trial_values (trial_id, objective, value, value_type)
            select p_trial_id, position - 1, case when v > '-Infinity' and v < 'Infinity' then v end,
                (case v when 'Infinity' then 'INF_POS' when '-Infinity' then 'INF_NEG' else 'FINITE' end)::trialvaluetype
            from unnest(p_values) with ordinality as u (v, position)
            on conflict (trial_id, objective) do update set value = excluded.value, value_type = excluded.value_type;
    end if;
end $$;

CREATE FUNCTION studyhall.refuse_local_times() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION studyhall.requeue(p_trial_id integer, p_died_of text) RETURNS boolean
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.save_checkpoint(p_trial_id integer, p_claim uuid, p_sequence integer, p_name text, p_step integer, p_sha256 bytea, p_data bytea) RETURNS SETOF text
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.set(p_trial_id integer, p_changes jsonb) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    perform set_config('studyhall.own', 'yes', true);
    perform studyhall.lock_unfinished(p_trial_id);
    update studyhall.leases set revision = revision + 1, changed = pg_current_xact_id() where trial_id = p_trial_id;
    perform studyhall.put(p_trial_id, p_changes);
end $$;

CREATE FUNCTION studyhall.set_param(p_trial_id integer, p_name text, p_value double precision, p_distribution text) RETURNS text
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.set_state(p_token uuid, p_trial_id integer, p_state public.trialstate, p_values double precision[]) RETURNS boolean
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.sweep(p_study_id integer) RETURNS integer
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION studyhall.take(p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid, p_most integer, OUT trial_id integer, OUT epoch integer, OUT reason text) RETURNS record
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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
        if t.waiting + t.running + t.complete + t.pruned + t.failed + t.cancelled >= p_most then
            reason := case when t.waiting + t.running > 0 then 'wait' else 'exhausted' end;
            return;
        end if;
        trial_id := studyhall.new_trial(t, 'RUNNING');
    end if;
    update studyhall.leases l
        set worker_id = p_worker_id, held = true, step = null, epoch = l.epoch + 1, claim = p_claim,
            revision = l.revision + 1, changed = pg_current_xact_id(), seconds = p_lease_seconds,
            expires_at = now() + make_interval(secs => p_lease_seconds)
        where l.trial_id = take.trial_id returning l.epoch into epoch;
end $$;

CREATE FUNCTION studyhall.tally(p_study_id integer) RETURNS studyhall.tallies
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    return studyhall.counted(
        p_study_id, (select array_agg(x) from studyhall.transitions x where x.study_id = p_study_id));
end $$;

CREATE FUNCTION studyhall.write(p_trial_id integer, p_claim uuid, p_revision integer, p_step integer, p_changes jsonb, OUT cancelled boolean, OUT interrupted boolean, OUT revision integer) RETURNS record
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.studies (
    study_id integer NOT NULL,
    study_name character varying(512) NOT NULL
);

CREATE SEQUENCE public.studies_study_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.studies_study_id_seq OWNED BY public.studies.study_id;

CREATE TABLE public.study_directions (
    study_direction_id integer NOT NULL,
    direction public.studydirection NOT NULL,
    study_id integer NOT NULL,
    objective integer NOT NULL
);

CREATE SEQUENCE public.study_directions_study_direction_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.study_directions_study_direction_id_seq OWNED BY public.study_directions.study_direction_id;

CREATE TABLE public.study_system_attributes (
    study_system_attribute_id integer NOT NULL,
    study_id integer,
    key character varying(512),
    value_json text
);

CREATE SEQUENCE public.study_system_attributes_study_system_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.study_system_attributes_study_system_attribute_id_seq OWNED BY public.study_system_attributes.study_system_attribute_id;

CREATE TABLE public.study_user_attributes (
    study_user_attribute_id integer NOT NULL,
    study_id integer,
    key character varying(512),
    value_json text
);

CREATE SEQUENCE public.study_user_attributes_study_user_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.study_user_attributes_study_user_attribute_id_seq OWNED BY public.study_user_attributes.study_user_attribute_id;

CREATE TABLE public.trial_heartbeats (
    trial_heartbeat_id integer NOT NULL,
    trial_id integer NOT NULL,
    heartbeat timestamp without time zone NOT NULL
);

CREATE SEQUENCE public.trial_heartbeats_trial_heartbeat_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trial_heartbeats_trial_heartbeat_id_seq OWNED BY public.trial_heartbeats.trial_heartbeat_id;

CREATE SEQUENCE public.trial_intermediate_values_trial_intermediate_value_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trial_intermediate_values_trial_intermediate_value_id_seq OWNED BY public.trial_intermediate_values.trial_intermediate_value_id;

CREATE SEQUENCE public.trial_params_param_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trial_params_param_id_seq OWNED BY public.trial_params.param_id;

CREATE SEQUENCE public.trial_system_attributes_trial_system_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trial_system_attributes_trial_system_attribute_id_seq OWNED BY public.trial_system_attributes.trial_system_attribute_id;

CREATE SEQUENCE public.trial_user_attributes_trial_user_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trial_user_attributes_trial_user_attribute_id_seq OWNED BY public.trial_user_attributes.trial_user_attribute_id;

CREATE SEQUENCE public.trial_values_trial_value_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trial_values_trial_value_id_seq OWNED BY public.trial_values.trial_value_id;

CREATE SEQUENCE public.trials_trial_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.trials_trial_id_seq OWNED BY public.trials.trial_id;

CREATE TABLE public.version_info (
    version_info_id integer NOT NULL,
    schema_version integer,
    library_version character varying(256),
    CONSTRAINT version_info_version_info_id_check CHECK ((version_info_id = 1))
);

CREATE TABLE studyhall.addresses (
    study_id integer NOT NULL,
    url text NOT NULL
);

CREATE TABLE studyhall.budgets (
    study_id integer NOT NULL,
    trials integer NOT NULL,
    max_failures integer NOT NULL,
    timeout_seconds double precision,
    target double precision,
    stopped text,
    uid uuid DEFAULT gen_random_uuid() NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    CONSTRAINT budgets_max_failures_check CHECK ((max_failures > 0)),
    CONSTRAINT budgets_target_check CHECK (((target > '-Infinity'::double precision) AND (target < 'Infinity'::double precision))),
    CONSTRAINT budgets_timeout_seconds_check CHECK (((timeout_seconds > (0)::double precision) AND (timeout_seconds < ('1000000000'::numeric)::double precision))),
    CONSTRAINT budgets_trials_check CHECK ((trials > 0))
);

CREATE TABLE studyhall.checkpoints (
    trial_id integer NOT NULL,
    epoch integer NOT NULL,
    sequence integer NOT NULL,
    name text NOT NULL,
    step integer NOT NULL,
    sha256 bytea NOT NULL,
    data bytea,
    saved_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY studyhall.checkpoints ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE studyhall.leases (
    trial_id integer NOT NULL,
    worker_id text NOT NULL,
    epoch integer DEFAULT 1 NOT NULL,
    lost integer DEFAULT 0 NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    held boolean DEFAULT true NOT NULL,
    claim uuid,
    cancelled boolean DEFAULT false NOT NULL,
    revision integer DEFAULT 1 NOT NULL,
    step integer,
    reached integer,
    seconds double precision NOT NULL,
    study_id integer NOT NULL,
    changed xid8 DEFAULT pg_current_xact_id() NOT NULL
);

COMMENT ON COLUMN studyhall.leases.lost IS 'how many workers died on it since it last got a step further';

CREATE TABLE studyhall.metrics (
    trial_id integer NOT NULL,
    step integer NOT NULL,
    name text NOT NULL,
    value double precision NOT NULL,
    at timestamp with time zone DEFAULT now()
);

CREATE TABLE studyhall.notices (
    study_id integer NOT NULL,
    address text NOT NULL,
    event text NOT NULL,
    taken_by text NOT NULL,
    taken_till timestamp with time zone NOT NULL,
    told_at timestamp with time zone
);

CREATE TABLE studyhall.requests (
    token uuid NOT NULL,
    answer integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE studyhall.version (
    version integer NOT NULL,
    at timestamp with time zone
);

CREATE TABLE studyhall.workers (
    worker_id text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    device text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    study_ids integer[] NOT NULL,
    ended_at timestamp with time zone,
    died_of text
);

ALTER TABLE ONLY public.studies ALTER COLUMN study_id SET DEFAULT nextval('public.studies_study_id_seq'::regclass);

ALTER TABLE ONLY public.study_directions ALTER COLUMN study_direction_id SET DEFAULT nextval('public.study_directions_study_direction_id_seq'::regclass);

ALTER TABLE ONLY public.study_system_attributes ALTER COLUMN study_system_attribute_id SET DEFAULT nextval('public.study_system_attributes_study_system_attribute_id_seq'::regclass);

ALTER TABLE ONLY public.study_user_attributes ALTER COLUMN study_user_attribute_id SET DEFAULT nextval('public.study_user_attributes_study_user_attribute_id_seq'::regclass);

ALTER TABLE ONLY public.trial_heartbeats ALTER COLUMN trial_heartbeat_id SET DEFAULT nextval('public.trial_heartbeats_trial_heartbeat_id_seq'::regclass);

ALTER TABLE ONLY public.trial_intermediate_values ALTER COLUMN trial_intermediate_value_id SET DEFAULT nextval('public.trial_intermediate_values_trial_intermediate_value_id_seq'::regclass);

ALTER TABLE ONLY public.trial_params ALTER COLUMN param_id SET DEFAULT nextval('public.trial_params_param_id_seq'::regclass);

ALTER TABLE ONLY public.trial_system_attributes ALTER COLUMN trial_system_attribute_id SET DEFAULT nextval('public.trial_system_attributes_trial_system_attribute_id_seq'::regclass);

ALTER TABLE ONLY public.trial_user_attributes ALTER COLUMN trial_user_attribute_id SET DEFAULT nextval('public.trial_user_attributes_trial_user_attribute_id_seq'::regclass);

ALTER TABLE ONLY public.trial_values ALTER COLUMN trial_value_id SET DEFAULT nextval('public.trial_values_trial_value_id_seq'::regclass);

ALTER TABLE ONLY public.trials ALTER COLUMN trial_id SET DEFAULT nextval('public.trials_trial_id_seq'::regclass);

INSERT INTO public.alembic_version VALUES
	('v3.2.0.a');

INSERT INTO public.studies VALUES
	(1, 'digits'),
	(2, 'old');

INSERT INTO public.study_directions VALUES
	(1, 'MAXIMIZE', 1, 0),
	(2, 'MAXIMIZE', 2, 0);

INSERT INTO public.study_system_attributes VALUES
	(1, 1, 'study:metric_names', '["val_accuracy"]'),
	(2, 2, 'study:metric_names', '["accuracy"]'),
	(3, 2, 'studyhall:distribution:0b27c158feb36ab18a10ff687909ec730ece6280581dd407e2672359be7725dd', '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}');

INSERT INTO public.study_user_attributes VALUES
	(1, 1, 'spec', '{"name":"digits","direction":"maximize","metric":"val_accuracy","seed":0,"objective":{"path":"objectives.mlp:MLP","args":{"dataset":"digits","epochs":27}},"budget":{"trials":40,"max_failures":10},"sampler":{"name":"tpe","options":{}},"pruner":{"name":"hyperband","options":{"min_resource":3,"reduction_factor":3}},"checkpoints":{"store":"postgresql","every":30.0},"notify":{},"space":{"width":{"when":{},"low":32,"high":512,"log":true,"step":1,"type":"int"},"dropout":{"when":{},"low":0.0,"high":0.6,"log":false,"type":"float"},"weight_decay":{"when":{},"low":1e-06,"high":0.1,"log":true,"type":"float"},"lr":{"when":{},"low":0.001,"high":0.03,"log":true,"type":"float"},"batch_size":{"when":{},"type":"categorical","choices":[32,64,128]}}}'),
	(2, 1, 'spec_sha256', '"1f9648427dc73ea13b0449b25049936ce0702ecf401dd49e9396afcd50bccd5b"'),
	(3, 2, 'spec', '{"name":"old","direction":"maximize","metric":"accuracy","seed":3,"objective":{"path":"train.py:objective","sha256":"37ca9db1f8a5ff2237d19a58a1edd183a94942087b1c577c68d0aa7b596fbc3e","args":{}},"budget":{"trials":6,"max_failures":4},"sampler":{"name":"random","options":{}},"pruner":{"name":"none","options":{}},"checkpoints":{"store":"postgresql","every":30.0},"notify":{},"space":{"x":{"when":{},"low":0.0,"high":1.0,"log":false,"type":"float"},"kind":{"when":{},"type":"categorical","choices":["a","b"]}}}'),
	(4, 2, 'spec_sha256', '"9cf61dfc4ff0aef81f7b3989644a0b7173a48bc3cfbbf185e41ae8f4e2fad9f9"');

INSERT INTO public.trial_intermediate_values VALUES
	(1, 1, 0, 0.5, 'FINITE'),
	(2, 2, 0, 0.9667248696613584, 'FINITE'),
	(3, 3, 0, 0.6137540152152625, 'FINITE'),
	(4, 4, 0, 0.6110680175638197, 'FINITE');

INSERT INTO public.trial_params VALUES
	(1, 1, 'x', 0.5, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'),
	(2, 1, 'kind', 1, '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}'),
	(3, 2, 'x', 0.9667248696613584, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'),
	(4, 2, 'kind', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}'),
	(5, 3, 'x', 0.6137540152152625, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'),
	(6, 3, 'kind', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}'),
	(7, 4, 'x', 0.6110680175638197, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'),
	(8, 4, 'kind', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}');

INSERT INTO public.trial_system_attributes VALUES
	(1, 1, 'fixed_params', '{"x": 0.5}'),
	(2, 5, 'fixed_params', '{"x": 0.25, "kind": "b"}');

INSERT INTO public.trial_user_attributes VALUES
	(1, 2, 'error', '"ValueError: too wide"'),
	(2, 2, 'traceback', '"Traceback (most recent call last):\n  File \"/opt/studyhall/studies/worker/loop.py\", line 177, in _call\n    returned = study.objective(trial)\n               ^^^^^^^^^^^^^^^^^^^^^^\n  File \"/home/ann/train.py\", line 11, in objective\n    raise ValueError(\"too wide\")\nValueError: too wide\n"');

INSERT INTO public.trial_values VALUES
	(1, 1, 0, 0.5, 'FINITE'),
	(2, 3, 0, 0.6137540152152625, 'FINITE');

INSERT INTO public.trials VALUES
	(1, 0, 2, 'COMPLETE', '2026-11-27 09:33:27.054879', '2026-11-27 09:33:27.1126'),
	(2, 1, 2, 'FAIL', '2026-11-27 09:33:27.12338', '2026-11-27 09:33:27.13917'),
	(3, 2, 2, 'PRUNED', '2026-11-27 09:33:27.283243', '2026-11-27 09:33:27.286654'),
	(4, 3, 2, 'RUNNING', '2026-11-27 09:33:27.29118', NULL),
	(5, 4, 2, 'WAITING', NULL, NULL);

INSERT INTO public.version_info VALUES
	(1, 12, '5.0.0');

INSERT INTO studyhall.budgets VALUES
	(1, 40, 10, NULL, NULL, NULL, 'f5215469-5524-452c-a1ac-19c66ee02687', false),
	(2, 6, 4, NULL, NULL, NULL, '702c21b5-8e1e-4238-bf9d-3f80b0eeae0b', false);

INSERT INTO studyhall.leases VALUES
	(1, 'host-6c5e70bcf16a', 1, 0, '2026-11-27 09:33:27.1126+00', false, '2b2245f1-08de-424a-b756-ce6e301ea8c8', false, 5, 0, NULL, 30, 2, '736'),
	(2, 'host-6c5e70bcf16a', 1, 0, '2026-11-27 09:33:27.13917+00', false, '8297c265-5608-4791-8ed8-347ea153c6e0', false, 4, 0, NULL, 30, 2, '739'),
	(3, 'host-6c5e70bcf16a', 1, 0, '2026-11-27 09:33:27.286654+00', false, 'b0664b0d-cacd-48f8-bc79-00dc90f628b7', false, 4, 0, NULL, 30, 2, '742'),
	(4, 'host-6c5e70bcf16a', 1, 0, '2026-11-27 09:33:57.299353+00', true, 'd1c83f32-b894-4372-aaa5-575e4976bcb0', false, 3, 0, NULL, 30, 2, '744'),
	(5, '', 0, 0, '2026-11-27 09:33:29.005305+00', false, NULL, false, 1, NULL, NULL, 0, 2, '745');

INSERT INTO studyhall.metrics VALUES
	(1, 0, 'loss', 0.5, '2026-11-27 09:33:27.09748+00'),
	(2, 0, 'loss', 0.0332751303386416, '2026-11-27 09:33:27.135163+00'),
	(3, 0, 'loss', 0.3862459847847375, '2026-11-27 09:33:27.285993+00'),
	(4, 0, 'loss', 0.3889319824361803, '2026-11-27 09:33:27.299353+00');

INSERT INTO studyhall.requests VALUES
	('91e710a5-bd18-4224-ac33-c907883c4ea1', 1, '2026-11-27 09:33:16.803173+00'),
	('7525caa1-6301-467a-9188-7728dc32218c', 2, '2026-11-27 09:33:19.789204+00'),
	('e44093c5-5533-4ec7-958b-886c64387af6', 1, '2026-11-27 09:33:22.059193+00'),
	('167f1b5e-c053-4fe1-aff1-0918ff6fe604', 5, '2026-11-27 09:33:29.005305+00');

INSERT INTO studyhall.tallies VALUES
	(2, 0, 1, 1, 1, 1, 0, '2026-11-27 09:33:27.054879', 0.5);

INSERT INTO studyhall.transitions VALUES
	(2, 5, NULL, 'WAITING');

INSERT INTO studyhall.version VALUES
	(1, '2026-11-27 09:33:14.625259+00'),
	(2, '2026-11-27 09:33:14.625259+00'),
	(3, '2026-11-27 09:33:14.625259+00'),
	(4, '2026-11-27 09:33:14.625259+00'),
	(5, '2026-11-27 09:33:14.625259+00'),
	(6, '2026-11-27 09:33:14.625259+00');

INSERT INTO studyhall.workers VALUES
	('host-6c5e70bcf16a', 'host', 31247, 'cpu', '2026-11-27 09:33:27.021207+00', '2026-11-27 09:33:27.021207+00', '{2}', NULL, NULL);

SELECT pg_catalog.setval('public.studies_study_id_seq', 3, true);

SELECT pg_catalog.setval('public.study_directions_study_direction_id_seq', 2, true);

SELECT pg_catalog.setval('public.study_system_attributes_study_system_attribute_id_seq', 3, true);

SELECT pg_catalog.setval('public.study_user_attributes_study_user_attribute_id_seq', 4, true);

SELECT pg_catalog.setval('public.trial_heartbeats_trial_heartbeat_id_seq', 1, false);

SELECT pg_catalog.setval('public.trial_intermediate_values_trial_intermediate_value_id_seq', 4, true);

SELECT pg_catalog.setval('public.trial_params_param_id_seq', 8, true);

SELECT pg_catalog.setval('public.trial_system_attributes_trial_system_attribute_id_seq', 2, true);

SELECT pg_catalog.setval('public.trial_user_attributes_trial_user_attribute_id_seq', 2, true);

SELECT pg_catalog.setval('public.trial_values_trial_value_id_seq', 2, true);

SELECT pg_catalog.setval('public.trials_trial_id_seq', 5, true);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_pkey PRIMARY KEY (study_id);

ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_pkey PRIMARY KEY (study_direction_id);

ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_study_id_objective_key UNIQUE (study_id, objective);

ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_pkey PRIMARY KEY (study_system_attribute_id);

ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_study_id_key_key UNIQUE (study_id, key);

ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_pkey PRIMARY KEY (study_user_attribute_id);

ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_study_id_key_key UNIQUE (study_id, key);

ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_pkey PRIMARY KEY (trial_heartbeat_id);

ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_trial_id_key UNIQUE (trial_id);

ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_pkey PRIMARY KEY (trial_intermediate_value_id);

ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_trial_id_step_key UNIQUE (trial_id, step);

ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_pkey PRIMARY KEY (param_id);

ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_trial_id_param_name_key UNIQUE (trial_id, param_name);

ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_pkey PRIMARY KEY (trial_system_attribute_id);

ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_trial_id_key_key UNIQUE (trial_id, key);

ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_pkey PRIMARY KEY (trial_user_attribute_id);

ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_trial_id_key_key UNIQUE (trial_id, key);

ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_pkey PRIMARY KEY (trial_value_id);

ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_trial_id_objective_key UNIQUE (trial_id, objective);

ALTER TABLE ONLY public.trials
    ADD CONSTRAINT trials_pkey PRIMARY KEY (trial_id);

ALTER TABLE ONLY public.version_info
    ADD CONSTRAINT version_info_pkey PRIMARY KEY (version_info_id);

ALTER TABLE ONLY studyhall.addresses
    ADD CONSTRAINT addresses_pkey PRIMARY KEY (study_id);

ALTER TABLE ONLY studyhall.budgets
    ADD CONSTRAINT budgets_pkey PRIMARY KEY (study_id);

ALTER TABLE ONLY studyhall.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (trial_id, epoch, sequence);

ALTER TABLE ONLY studyhall.leases
    ADD CONSTRAINT leases_claim_key UNIQUE (claim);

ALTER TABLE ONLY studyhall.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (trial_id);

ALTER TABLE ONLY studyhall.metrics
    ADD CONSTRAINT metrics_pkey PRIMARY KEY (trial_id, step, name);

ALTER TABLE ONLY studyhall.notices
    ADD CONSTRAINT notices_pkey PRIMARY KEY (study_id, address, event);

ALTER TABLE ONLY studyhall.requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (token);

ALTER TABLE ONLY studyhall.tallies
    ADD CONSTRAINT tallies_pkey PRIMARY KEY (study_id);

ALTER TABLE ONLY studyhall.version
    ADD CONSTRAINT version_pkey PRIMARY KEY (version);

ALTER TABLE ONLY studyhall.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (worker_id);

CREATE UNIQUE INDEX ix_studies_study_name ON public.studies USING btree (study_name);

CREATE INDEX ix_trials_study_id ON public.trials USING btree (study_id);

CREATE INDEX studyhall_waiting ON public.trials USING btree (study_id, number) WHERE (state = 'WAITING'::public.trialstate);

CREATE INDEX leases_study_id_changed_idx ON studyhall.leases USING btree (study_id, changed);

CREATE INDEX leases_study_id_idx ON studyhall.leases USING btree (study_id) WHERE held;

CREATE INDEX leases_worker_id_idx ON studyhall.leases USING btree (worker_id) WHERE held;

CREATE INDEX requests_at_idx ON studyhall.requests USING btree (at);

CREATE INDEX transitions_study_id_idx ON studyhall.transitions USING btree (study_id);

CREATE TRIGGER studyhall_forget_study AFTER DELETE ON public.studies FOR EACH ROW EXECUTE FUNCTION studyhall.forget_study();

CREATE TRIGGER studyhall_note_change BEFORE INSERT OR UPDATE ON public.trial_intermediate_values FOR EACH ROW WHEN ((current_setting('studyhall.own'::text, true) IS DISTINCT FROM 'yes'::text)) EXECUTE FUNCTION studyhall.note_change();

CREATE TRIGGER studyhall_note_change BEFORE INSERT OR UPDATE ON public.trial_params FOR EACH ROW WHEN ((current_setting('studyhall.own'::text, true) IS DISTINCT FROM 'yes'::text)) EXECUTE FUNCTION studyhall.note_change();

CREATE TRIGGER studyhall_note_change BEFORE INSERT OR UPDATE ON public.trial_system_attributes FOR EACH ROW WHEN ((current_setting('studyhall.own'::text, true) IS DISTINCT FROM 'yes'::text)) EXECUTE FUNCTION studyhall.note_change();

CREATE TRIGGER studyhall_note_change BEFORE INSERT OR UPDATE ON public.trial_user_attributes FOR EACH ROW WHEN ((current_setting('studyhall.own'::text, true) IS DISTINCT FROM 'yes'::text)) EXECUTE FUNCTION studyhall.note_change();

CREATE TRIGGER studyhall_note_change BEFORE INSERT OR UPDATE ON public.trial_values FOR EACH ROW WHEN ((current_setting('studyhall.own'::text, true) IS DISTINCT FROM 'yes'::text)) EXECUTE FUNCTION studyhall.note_change();

CREATE TRIGGER studyhall_note_gone AFTER DELETE ON public.trials FOR EACH ROW WHEN ((current_setting('studyhall.own'::text, true) IS DISTINCT FROM 'yes'::text)) EXECUTE FUNCTION studyhall.note_state();

CREATE TRIGGER studyhall_note_new AFTER INSERT ON public.trials FOR EACH ROW EXECUTE FUNCTION studyhall.note_state();

CREATE TRIGGER studyhall_note_state AFTER UPDATE ON public.trials FOR EACH ROW WHEN ((old.* IS DISTINCT FROM new.*)) EXECUTE FUNCTION studyhall.note_state();

CREATE TRIGGER studyhall_refuse_local_times BEFORE UPDATE ON public.trials FOR EACH ROW WHEN ((((new.datetime_complete IS DISTINCT FROM old.datetime_complete) AND (new.datetime_complete IS NOT NULL)) OR ((old.state = 'WAITING'::public.trialstate) AND (new.state = 'RUNNING'::public.trialstate) AND (new.datetime_start IS DISTINCT FROM old.datetime_start)))) EXECUTE FUNCTION studyhall.refuse_local_times();

CREATE TRIGGER studyhall_refuse_local_times_of_new BEFORE INSERT ON public.trials FOR EACH ROW WHEN (((new.state = 'RUNNING'::public.trialstate) AND (new.datetime_complete IS NULL))) EXECUTE FUNCTION studyhall.refuse_local_times();

ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);

ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);

ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);

ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);

ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);

ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);

ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);

ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);

ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);

ALTER TABLE ONLY public.trials
    ADD CONSTRAINT trials_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);

ALTER TABLE ONLY studyhall.addresses
    ADD CONSTRAINT addresses_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id) ON DELETE CASCADE;

ALTER TABLE ONLY studyhall.budgets
    ADD CONSTRAINT budgets_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id) ON DELETE CASCADE;

ALTER TABLE ONLY studyhall.checkpoints
    ADD CONSTRAINT checkpoints_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;

ALTER TABLE ONLY studyhall.leases
    ADD CONSTRAINT leases_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;

ALTER TABLE ONLY studyhall.metrics
    ADD CONSTRAINT metrics_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;

ALTER TABLE ONLY studyhall.notices
    ADD CONSTRAINT notices_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id) ON DELETE CASCADE;

ALTER TABLE ONLY studyhall.tallies
    ADD CONSTRAINT tallies_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id) ON DELETE CASCADE;

