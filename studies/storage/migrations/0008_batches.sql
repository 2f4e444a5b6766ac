-- A worker may hold many trials: it claims, writes and ends any number of them in one statement. Each trial
-- has an answer of its own, so that one which is lost does not keep the others out. Trials are locked by their ids.

drop function studyhall.claim(integer, text, double precision, uuid, integer, pg_snapshot, integer[]);
drop function studyhall.take(integer, text, double precision, uuid, integer);
drop function studyhall.write(integer, uuid, integer, integer, jsonb);
drop function studyhall.finish(integer, uuid, integer, trialstate, float8[], jsonb);

-- Give a worker its next trials, one for each claim: those that wait, else new ones, as far as the budget has room.
-- Under the study's row lock, which stock Optuna takes too when it creates a trial. The same claims sent again get
-- the same trials. They need not be on the disk when they are answered: where a crash of the server loses them,
-- whoever comes next gets them, under other claims, and what the first one writes is refused.
create function studyhall.take(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claims uuid[],
    p_most integer,         -- a new trial only where there are fewer than so many, if not null
    out trial_ids integer[],
    out reason text         -- where there is none: 'wait' for the running ones, 'paused', 'exhausted', or why the study is over
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    t studyhall.tallies;
    budget studyhall.budgets;
    token uuid;
    taken integer;
begin
    perform set_config('synchronous_commit', 'off', true);
    perform from studies where study_id = p_study_id for no key update;
    if not found then
        reason := 'deleted';
        return;
    end if;
    trial_ids := array(
        select l.trial_id from studyhall.leases l join trials using (trial_id)
        where l.claim = any(p_claims) and l.held and trials.state = 'RUNNING');
    if cardinality(trial_ids) > 0 then
        return;
    end if;
    perform studyhall.sweep(p_study_id);

    t := studyhall.count_trials(p_study_id);
    select * into budget from studyhall.budgets where study_id = p_study_id;
    reason := studyhall.ended(t);
    if reason is null and budget.paused then
        reason := 'paused';
    end if;
    if reason is not null then
        return;
    end if;

    foreach token in array p_claims loop
        if t.complete + t.pruned + t.running >= budget.trials then
            reason := 'wait';
            exit;
        end if;
        update trials set state = 'RUNNING', datetime_start = coalesce(datetime_start, now() at time zone 'UTC')
            where trials.trial_id = (
                select w.trial_id from trials w where w.study_id = p_study_id and w.state = 'WAITING'
                order by w.number limit 1 for no key update skip locked)
            returning trials.trial_id into taken;
        if taken is not null then
            t.waiting := t.waiting - 1;
        elsif t.waiting + t.running + t.complete + t.pruned + t.failed + t.cancelled >= p_most then
            reason := case when t.waiting + t.running > 0 then 'wait' else 'exhausted' end;
            exit;
        else
            taken := studyhall.new_trial(t, 'RUNNING');
        end if;
        t.running := t.running + 1;
        update studyhall.leases l
            set worker_id = p_worker_id, held = true, step = null, epoch = l.epoch + 1, claim = token,
                revision = l.revision + 1, changed = pg_current_xact_id(), seconds = p_lease_seconds,
                expires_at = now() + make_interval(secs => p_lease_seconds)
            where l.trial_id = taken;
        trial_ids := trial_ids || taken;
    end loop;
    if cardinality(trial_ids) > 0 then
        reason := null;
    end if;
end $$;

-- As before, with each trial once: one that was asked for again may have changed as well.
create or replace function studyhall.changes(p_study_id integer, p_since pg_snapshot, p_again integer[])
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
    return query select snapshot, c from (select unnest(ids) union select unnest(p_again)) as u (id)
        join studyhall.contents c on c.trial_id = id;
end $$;

-- Take trials, and read what has changed in the study: one row with the reason where there is none to take, else
-- the changed trials, the taken ones among them: these have a token, that of their claim, and an epoch.
create function studyhall.claim(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claims uuid[], p_most integer,
    p_since pg_snapshot, p_again integer[]
) returns table (reason text, token text, epoch integer, snapshot text, trial studyhall.contents)
language plpgsql as $$
declare
    taken record;
begin
    perform set_config('studyhall.own', 'yes', true);
    taken := studyhall.take(p_study_id, p_worker_id, p_lease_seconds, p_claims, p_most);
    if taken.reason is not null then
        return query select taken.reason, null::text, null::integer, null, null::studyhall.contents;
        return;
    end if;
    return query select null::text, l.claim::text, l.epoch, c.snapshot, c.trial
        from studyhall.changes(p_study_id, p_since, p_again) c
        left join studyhall.leases l on l.trial_id = (c.trial).trial_id and l.trial_id = any(taken.trial_ids);
end $$;

-- A worker's write to a trial that it holds, which is a heartbeat too. Learns what a person wants of it.
-- It need not be on the disk when it is answered: where the trial's revision is not beyond the one that the
-- worker knows, a crash of the server has lost something, and the worker is asked to write it once more.
create function studyhall.write_one(
    p_trial_id integer, p_claim uuid, p_revision integer, p_step integer, p_changes jsonb,
    out cancelled boolean,      -- end this trial
    out interrupted boolean,    -- give it back: its study is paused or stopped
    out revision integer,
    out failure text            -- 'lost' where it is not held under this claim, 'forgotten' after a crash: nothing is written
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
    perform from trials where trial_id = p_trial_id and state = 'RUNNING' for key share;
    if found then
        update studyhall.leases l
            set expires_at = now() + make_interval(secs => l.seconds), revision = l.revision + 1,
                changed = pg_current_xact_id(), step = coalesce(p_step, l.step)
            where l.trial_id = p_trial_id and l.claim = p_claim and l.held and l.revision >= p_revision
            returning l.cancelled, exists (
                select from studyhall.budgets b where b.study_id = l.study_id and (b.paused or b.stopped is not null)
            ), l.revision into cancelled, interrupted, revision;
    end if;
    if not found then
        failure := case when exists (
            select from studyhall.leases l join trials using (trial_id)
            where l.trial_id = p_trial_id and l.claim = p_claim and l.held and trials.state = 'RUNNING'
        ) then 'forgotten' else 'lost' end;
        return;
    end if;
    perform studyhall.put(p_trial_id, p_changes);
end $$;

-- The same for several trials; what any of them is refused for, all are.
create function studyhall.write(
    p_trial_ids integer[], p_claims uuid[], p_revisions integer[], p_steps integer[], p_changes jsonb[]
) returns table (trial_id integer, cancelled boolean, interrupted boolean, revision integer, failure text)
language plpgsql as $$
declare
    each record;
begin
    perform set_config('studyhall.own', 'yes', true);
    perform set_config('synchronous_commit', 'off', true);
    for each in
        select * from unnest(p_trial_ids, p_claims, p_revisions, p_steps, p_changes) as u (id, claim, known, step, changes)
        order by id
    loop
        return query select each.id, w.* from studyhall.write_one(each.id, each.claim, each.known, each.step, each.changes) w;
    end loop;
end $$;

-- A worker's result for a trial that it holds. Sent again, it changes nothing. A trial that was requeued
-- meanwhile, and that nobody has taken, takes the result too, if the budget has room for it: under the study's row
-- lock then. Returns null, or as `failure` of write_one.
create function studyhall.finish_one(
    p_trial_id integer, p_claim uuid, p_revision integer, p_state trialstate, p_values float8[], p_changes jsonb,
    p_is_study_locked boolean
) returns text language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    study integer;
    was trialstate;
    is_held boolean;
    known integer;
begin
    select study_id, state into study, was from trials where trial_id = p_trial_id for no key update;
    if was = 'WAITING' and not p_is_study_locked then
        -- Requeued this very moment: the study's row has to be locked first.
        raise exception 'trial % was just requeued', p_trial_id using errcode = '40001';
    end if;
    select held, revision into is_held, known
        from studyhall.leases where trial_id = p_trial_id and claim = p_claim for update;
    if not found then
        return 'lost';
    elsif was = p_state and not is_held then
        return null;
    elsif not (was = 'RUNNING' and is_held)
        and not (was = 'WAITING' and studyhall.has_room(studyhall.tally(study))) then
        return 'lost';
    elsif known < p_revision then
        return 'forgotten';
    end if;
    update studyhall.leases
        set held = false, expires_at = now(), revision = revision + 1, changed = pg_current_xact_id()
        where trial_id = p_trial_id;
    perform studyhall.put(p_trial_id, p_changes);
    perform studyhall.put_values(p_trial_id, p_values);
    update trials set state = p_state, datetime_complete = now() at time zone 'UTC' where trial_id = p_trial_id;
    delete from studyhall.checkpoints where trial_id = p_trial_id;
    return null;
end $$;

-- The same for several trials of one study; what any of them is refused for, all are.
create function studyhall.finish(
    p_trial_ids integer[], p_claims uuid[], p_revisions integer[], p_states trialstate[],
    p_values text[],            -- each null, or a float8[]: they may be of different lengths
    p_changes jsonb[]
) returns table (trial_id integer, failure text)
language plpgsql as $$
declare
    is_locked boolean := false;
    each record;
begin
    perform set_config('studyhall.own', 'yes', true);
    if exists (select from trials t where t.trial_id = any(p_trial_ids) and t.state = 'WAITING') then
        perform from studies s join trials t using (study_id) where t.trial_id = any(p_trial_ids)
            order by s.study_id for no key update of s;
        is_locked := true;
    end if;
    for each in
        select * from unnest(p_trial_ids, p_claims, p_revisions, p_states, p_values, p_changes)
            as u (id, claim, known, state, "values", changes)
        order by id
    loop
        return query select each.id, studyhall.finish_one(
            each.id, each.claim, each.known, each.state, each.values::float8[], each.changes, is_locked);
    end loop;
end $$;

-- The death of a worker counts on each trial that it had, by equal parts: which of them killed it, if any did, shows
-- when it kills the next one too, in whatever company.
alter table studyhall.leases alter lost type real;
comment on column studyhall.leases.lost is
    'how many workers died on it since it last got a step further; of one that had several trials each has its part';
drop function studyhall.requeue(integer, text);

-- Requeue a running trial, whose row is locked: RUNNING → WAITING, same row, same number, same parameters. Where
-- its worker died, of p_died_of, it counts, unless the trial has got further than any worker before; a trial on
-- which three died fails, so that it cannot take them all. One that was cancelled fails too. Returns whether
-- somebody held the trial; else it stays as it is.
create function studyhall.requeue(p_trial_id integer, p_died_of text, p_part real default 1) returns boolean
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
        lease.lost := case when farthest > coalesce(lease.reached, -1) then p_part else lease.lost + p_part end;
        lease.reached := greatest(farthest, lease.reached);
    end if;
    update studyhall.leases
        set held = false, expires_at = now(), revision = revision + 1, changed = pg_current_xact_id(),
            lost = lease.lost, reached = lease.reached
        where trial_id = p_trial_id;
    if lease.cancelled then
        perform studyhall.fail(p_trial_id, 'cancelled');
    elsif p_died_of is not null and lease.lost > 2.99 then
        perform studyhall.fail(p_trial_id, format(case when p_part = 1 then '%s workers died on this trial, the last: %s'
            else 'workers died on this trial, and on others beside it, as often as if %s had died on it alone, the last: %s'
            end, round(lease.lost), p_died_of));
    else
        update trials set state = 'WAITING' where trial_id = p_trial_id and state = 'RUNNING';
    end if;
    return true;
end $$;

-- Requeue the trials of a study whose workers have been silent for longer than their leases; returns how many.
-- While the server was down no heartbeat could arrive: a lease lasts at least its own time after the server's
-- start. A trial that somebody is at is not waited for.
create or replace function studyhall.sweep(p_study_id integer) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    orphan record;
    swept integer := 0;
begin
    perform set_config('studyhall.own', 'yes', true);
    for orphan in
        select t.trial_id, coalesce(w.host, l.worker_id) as host, (
            select count(*) from studyhall.leases o where o.study_id = p_study_id and o.held and o.worker_id = l.worker_id
        ) as beside
        from studyhall.leases l join trials t on t.trial_id = l.trial_id
            left join studyhall.workers w on w.worker_id = l.worker_id
        where l.study_id = p_study_id and l.held and l.expires_at < now() and t.state = 'RUNNING'
            and pg_postmaster_start_time() + make_interval(secs => l.seconds) < now()
        order by t.trial_id for no key update of t skip locked
    loop
        perform from studyhall.leases where trial_id = orphan.trial_id and held and expires_at < now() for update;
        if found then  -- and not renewed while its row was being locked
            perform studyhall.requeue(orphan.trial_id, 'no heartbeat from ' || orphan.host, (1.0 / greatest(orphan.beside, 1))::real);
            swept := swept + 1;
        end if;
    end loop;
    return swept;
end $$;

-- Requeue the running trials of workers that have ended, where it counts if they died of something; returns how
-- many. Sent again, it finds what it did by its token.
create or replace function studyhall.bury(p_token uuid, p_worker_ids text[], p_died_of text) returns integer
language plpgsql as $$
declare
    orphan record;
    buried integer := 0;
begin
    perform set_config('studyhall.own', 'yes', true);
    insert into studyhall.requests (token, answer) values (p_token, 0) on conflict do nothing;
    if not found then
        return (select answer from studyhall.requests where token = p_token);
    end if;
    for orphan in
        select t.trial_id, (
            select count(*) from studyhall.leases o where o.held and o.worker_id = l.worker_id
        ) as beside
        from studyhall.leases l join trials t on t.trial_id = l.trial_id
        where t.state = 'RUNNING' and l.held and l.worker_id = any(p_worker_ids)
        order by t.trial_id for no key update of t
    loop
        perform from studyhall.leases where trial_id = orphan.trial_id and held and worker_id = any(p_worker_ids) for update;
        if found then  -- and not another's by now
            perform studyhall.requeue(orphan.trial_id, p_died_of, (1.0 / greatest(orphan.beside, 1))::real);
            buried := buried + 1;
        end if;
    end loop;
    update studyhall.requests set answer = buried where token = p_token;
    return buried;
end $$;
