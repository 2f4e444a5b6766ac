-- Trials that a scheduler pauses and promotes, and budgets of epochs and GPU hours.
--
-- A paused trial is WAITING, has the step that it reached as its system attribute studyhall:paused (null once it goes
-- on), and is not ready: only a claim that names it, or stock Optuna, runs it again. Other waiting trials are ready.

alter table studyhall.leases
    add ready      boolean not null default false,          -- waits for whoever comes next
    add until      integer,                                 -- the step at which the trial is paused; null: never
    add promotions integer not null default 0;              -- how often it was claimed after a pause: no attempts
update studyhall.leases l set ready = true from trials t where t.trial_id = l.trial_id and t.state = 'WAITING';
create index studyhall_ready on studyhall.leases (study_id, trial_id) where ready;

alter table studyhall.budgets
    add epochs    bigint check (epochs > 0),                -- steps that workers report
    add gpu_hours double precision check (gpu_hours > 0 and gpu_hours < 1e9);

-- What a study has used of a budget of epochs or GPU hours. One row for each study: its lock makes the count exact. The
-- lock comes last, after that of any trial or lease.
create table studyhall.spent (
    study_id    integer primary key references studies on delete cascade,
    epochs      bigint not null default 0,
    gpu_seconds double precision not null default 0
);

-- Up to when the GPU time of a worker is counted in studyhall.spent.
create table studyhall.clocks (
    study_id   integer not null references studies on delete cascade,
    worker_id  text not null,
    charged_at timestamptz not null,
    primary key (study_id, worker_id)
);

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
        execute format('grant %s on studyhall.spent, studyhall.clocks to %s', grantee.privilege, grantee.role);
    end loop;
end $$;

-- As before, and keeps `ready` true.
create or replace function studyhall.note_state() returns trigger
language plpgsql security definer set search_path = pg_catalog as $$
begin
    if tg_op = 'INSERT' then
        insert into studyhall.leases (trial_id, study_id, worker_id, held, epoch, seconds, expires_at, ready)
            values (new.trial_id, new.study_id, '', false, 0, 0, now(), new.state = 'WAITING');
        insert into studyhall.transitions values (new.study_id, new.trial_id, null, new.state);
    elsif tg_op = 'DELETE' then
        insert into studyhall.transitions values (old.study_id, old.trial_id, old.state, null);
    else
        update studyhall.leases set changed = pg_current_xact_id(),
            revision = revision + (changed <> pg_current_xact_id())::integer,
            ready = case when new.state <> old.state then new.state = 'WAITING' else ready end
            where trial_id = new.trial_id and (changed <> pg_current_xact_id()
                or (new.state <> old.state and ready <> (new.state = 'WAITING')));
        if new.state <> old.state then
            insert into studyhall.transitions values (new.study_id, new.trial_id, old.state, new.state);
        end if;
    end if;
    return null;
end $$;

-- As before; returns how many steps were reported for the first time.
drop function studyhall.put(integer, jsonb);
create function studyhall.put(p_trial_id integer, p_changes jsonb) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    epochs integer := 0;
begin
    if p_changes = '{}' then
        return 0;
    end if;
    if p_changes ? 'params' then
        insert into trial_params (trial_id, param_name, param_value, distribution_json)
            select p_trial_id, name, value, distribution
            from jsonb_to_recordset(p_changes -> 'params') as p (name text, value float8, distribution text)
            on conflict (trial_id, param_name) do update
                set param_value = excluded.param_value, distribution_json = excluded.distribution_json;
    end if;
    if p_changes ? 'reports' then
        with reported as (
            insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
                select p_trial_id, step, case when value > '-Infinity' and value < 'Infinity' then value end,
                    (case value when 'Infinity' then 'INF_POS' when '-Infinity' then 'INF_NEG' when 'NaN' then 'NAN'
                        else 'FINITE' end)::trialintermediatevaluetype
                from jsonb_to_recordset(p_changes -> 'reports') as r (step integer, value float8)
                on conflict (trial_id, step) do update set
                    intermediate_value = excluded.intermediate_value,
                    intermediate_value_type = excluded.intermediate_value_type
                returning xmax = 0 as is_new  -- no transaction has updated or locked a new row
        )
        select count(*) filter (where is_new) into epochs from reported;
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
    return epochs;
end $$;

-- Count what a worker has used of a study's budget since the last time: these epochs, and the time for which it had
-- trials on a GPU. Returns whether the budget is used up.
create function studyhall.spend(p_study_id integer, p_worker_id text, p_epochs integer) returns boolean
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    budget studyhall.budgets;
    seconds float8 := 0;
    used studyhall.spent;
begin
    select * into budget from studyhall.budgets where study_id = p_study_id;
    if budget.epochs is null and budget.gpu_hours is null then
        return false;
    end if;
    if budget.gpu_hours is not null
        and exists (select from studyhall.workers where worker_id = p_worker_id and device like 'cuda%') then
        select greatest(0, extract(epoch from now() - charged_at)) into seconds
            from studyhall.clocks where study_id = p_study_id and worker_id = p_worker_id for update;
        insert into studyhall.clocks values (p_study_id, p_worker_id, now())
            on conflict (study_id, worker_id) do update set charged_at = greatest(clocks.charged_at, excluded.charged_at);
    end if;
    if p_epochs > 0 or seconds > 0 then
        insert into studyhall.spent as s (study_id, epochs, gpu_seconds) values (p_study_id, p_epochs, coalesce(seconds, 0))
            on conflict (study_id) do update
                set epochs = s.epochs + excluded.epochs, gpu_seconds = s.gpu_seconds + excluded.gpu_seconds
            returning * into used;
    else
        select * into used from studyhall.spent where study_id = p_study_id;
    end if;
    return coalesce(used.epochs >= budget.epochs, false) or coalesce(used.gpu_seconds >= 3600 * budget.gpu_hours, false);
end $$;

-- As before, and also over once its epochs or GPU hours are used up.
create or replace function studyhall.ended(t studyhall.tallies) returns text
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
            when s.epochs >= b.epochs then 'epochs'
            when s.gpu_seconds >= 3600 * b.gpu_hours then 'gpu_hours'
        end
        from studyhall.budgets b join study_directions d on d.study_id = b.study_id and d.objective = 0
            left join studyhall.spent s on s.study_id = b.study_id
        where b.study_id = t.study_id
    );
end $$;

-- The trials of a study that begin no more become PRUNED with their last report, as Optuna tells it: those that a
-- scheduler has paused, and with p_all every waiting one that has reported; as many as the budget has room for. Under
-- the study's row lock.
create function studyhall.prune_waiting(t studyhall.tallies, p_all boolean) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    ids integer[];
begin
    ids := array(
        select w.trial_id from trials w join studyhall.leases l using (trial_id)
        where w.study_id = t.study_id and w.state = 'WAITING' and (p_all or not l.ready)
            and exists (select from trial_intermediate_values i where i.trial_id = w.trial_id)
        order by w.trial_id
        limit (select greatest(0, b.trials - t.complete - t.pruned - t.running) from studyhall.budgets b where b.study_id = t.study_id)
        for no key update of w);
    if cardinality(ids) = 0 then
        return;
    end if;
    update studyhall.leases set revision = revision + 1, changed = pg_current_xact_id() where trial_id = any(ids);
    insert into trial_values (trial_id, objective, value, value_type)
        select trial_id, 0, intermediate_value, intermediate_value_type::text::trialvaluetype
        from unnest(ids) as id, lateral (
            select * from trial_intermediate_values i where i.trial_id = id order by step desc limit 1) as last
        where intermediate_value_type <> 'NAN'
            and not exists (select from study_directions d where d.study_id = t.study_id and d.objective > 0)
        on conflict (trial_id, objective) do nothing;
    update trial_system_attributes set value_json = 'null' where trial_id = any(ids) and key = 'studyhall:paused';
    delete from studyhall.checkpoints where trial_id = any(ids);
    update trials set state = 'PRUNED', datetime_complete = now() at time zone 'UTC' where trial_id = any(ids);
end $$;

drop function studyhall.claim(integer, text, double precision, uuid[], integer, pg_snapshot, integer[]);
drop function studyhall.take(integer, text, double precision, uuid[], integer);

-- Give a worker its next trials, one for each claim: those that are ready, else those that the scheduler chose, else,
-- without a scheduler, new ones, as far as the budget has room. Under the study's row lock, which stock Optuna takes
-- too when it creates a trial. The same claims sent again get the same trials. They need not be on the disk when they
-- are answered: where a crash of the server loses them, whoever comes next gets them, under other claims, and what the
-- first one writes is refused.
create function studyhall.take(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claims uuid[],
    p_most integer,         -- a new trial only where there are fewer than so many, if not null
    p_fresh integer,        -- with a scheduler: the step until which a trial trains that is ready and never began; else null
    p_numbers integer[],    -- its choices, the first ones first: the paused trial, or null for a new one …
    p_untils integer[],     -- … and the step until which it trains
    p_since pg_snapshot,    -- what the scheduler has seen
    out trial_ids integer[],
    out reason text         -- where there is none: 'wait' for the running ones, 'changed': choose anew, 'paused',
                            -- 'exhausted', or why the study is over
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    t studyhall.tallies;
    budget studyhall.budgets;
    token uuid;
    taken integer;
    stop_at integer;        -- the step at which a taken trial is paused
    was_idle boolean;
    choice integer := 0;
    is_promoted boolean;
    is_gone boolean := false;
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
    if reason in ('complete', 'timeout', 'target', 'epochs', 'gpu_hours') and t.waiting > 0 then
        perform studyhall.prune_waiting(t, reason in ('epochs', 'gpu_hours'));
    end if;
    if reason is null and budget.paused then
        reason := 'paused';
    end if;
    if reason is not null then
        return;
    end if;
    was_idle := not exists (select from studyhall.leases l where l.worker_id = p_worker_id and l.held);

    foreach token in array p_claims loop
        if t.complete + t.pruned + t.running >= budget.trials then
            reason := 'wait';
            exit;
        end if;
        is_promoted := false;
        update trials set state = 'RUNNING', datetime_start = coalesce(datetime_start, now() at time zone 'UTC')
            where trials.trial_id = (
                select l.trial_id from studyhall.leases l join trials w using (trial_id)
                where l.study_id = p_study_id and l.ready and w.state = 'WAITING'
                order by l.trial_id limit 1 for no key update of w skip locked)
            returning trials.trial_id into taken;
        if taken is not null then
            t.waiting := t.waiting - 1;
            select coalesce(l.until, p_fresh) into stop_at from studyhall.leases l where l.trial_id = taken;
        elsif p_fresh is null then
            if t.waiting + t.running + t.complete + t.pruned + t.failed + t.cancelled >= p_most then
                reason := case when t.waiting + t.running > 0 then 'wait' else 'exhausted' end;
                exit;
            end if;
            taken := studyhall.new_trial(t, 'RUNNING');
        else
            while taken is null and choice < cardinality(p_numbers) loop
                choice := choice + 1;
                stop_at := p_untils[choice];
                if p_numbers[choice] is not null then
                    update trials set state = 'RUNNING'
                        where study_id = p_study_id and number = p_numbers[choice] and state = 'WAITING'
                        returning trials.trial_id into taken;
                    if taken is null then
                        is_gone := true;
                    else
                        is_promoted := true;
                        t.waiting := t.waiting - 1;
                        update trial_system_attributes set value_json = 'null'
                            where trial_id = taken and key = 'studyhall:paused';
                    end if;
                -- A paused trial will be finished: it has its room in the budget.
                elsif t.complete + t.pruned + t.running + t.waiting < budget.trials
                    and not coalesce(t.waiting + t.running + t.complete + t.pruned + t.failed + t.cancelled >= p_most, false)
                then
                    taken := studyhall.new_trial(t, 'RUNNING');
                end if;
            end loop;
            exit when taken is null;
        end if;
        t.running := t.running + 1;
        update studyhall.leases l
            set worker_id = p_worker_id, held = true, step = null, epoch = l.epoch + 1, claim = token, until = stop_at,
                promotions = l.promotions + is_promoted::integer,
                revision = l.revision + 1, changed = pg_current_xact_id(), seconds = p_lease_seconds,
                expires_at = now() + make_interval(secs => p_lease_seconds)
            where l.trial_id = taken;
        trial_ids := trial_ids || taken;
    end loop;
    if cardinality(trial_ids) > 0 then
        reason := null;
        if was_idle and budget.gpu_hours is not null then
            insert into studyhall.clocks values (p_study_id, p_worker_id, now())
                on conflict (study_id, worker_id) do update set charged_at = excluded.charged_at;
        end if;
    elsif p_fresh is not null and reason is null then
        reason := case
            when is_gone then 'changed'
            when t.running > 0 then 'wait'
            when exists (
                select from studyhall.leases l
                where l.study_id = p_study_id and l.changed >= coalesce(pg_snapshot_xmin(p_since), '0')
                    and (p_since is null or not pg_visible_in_snapshot(l.changed, p_since))) then 'changed'
            else 'exhausted' end;
        if reason = 'exhausted' then  -- nothing runs, and the scheduler wants nothing that the budget allows
            perform studyhall.prune_waiting(t, false);
            reason := coalesce(studyhall.ended(studyhall.tally(p_study_id)), reason);
        end if;
    end if;
end $$;

-- As before; with a scheduler the taken trials come with the step until which they train.
create function studyhall.claim(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claims uuid[], p_most integer,
    p_fresh integer, p_numbers integer[], p_untils integer[],
    p_since pg_snapshot, p_again integer[]
) returns table (reason text, token text, epoch integer, until integer, snapshot text, trial studyhall.contents)
language plpgsql as $$
declare
    taken record;
begin
    perform set_config('studyhall.own', 'yes', true);
    taken := studyhall.take(
        p_study_id, p_worker_id, p_lease_seconds, p_claims, p_most, p_fresh, p_numbers, p_untils, p_since);
    if taken.reason is not null then
        return query select taken.reason, null::text, null::integer, null::integer, null, null::studyhall.contents;
        return;
    end if;
    return query select null::text, l.claim::text, l.epoch, l.until, c.snapshot, c.trial
        from studyhall.changes(p_study_id, p_since, p_again) c
        left join studyhall.leases l on l.trial_id = (c.trial).trial_id and l.trial_id = any(taken.trial_ids);
end $$;

drop function studyhall.write(integer[], uuid[], integer[], integer[], jsonb[]);
drop function studyhall.write_one(integer, uuid, integer, integer, jsonb);
drop function studyhall.finish(integer[], uuid[], integer[], trialstate[], text[], jsonb[]);
drop function studyhall.finish_one(integer, uuid, integer, trialstate, float8[], jsonb, boolean);

-- What became of a worker's write to one trial.
create type studyhall.written as (
    trial_id    integer,
    study_id    integer,
    worker_id   text,
    epochs      integer,        -- how many steps it reported for the first time
    cancelled   boolean,        -- end this trial
    interrupted boolean,        -- give it back: its study is paused or stopped
    revision    integer,
    failure     text            -- 'lost' where it is not held under this claim, 'forgotten' after a crash: nothing is written
);

-- A worker's write to a trial that it holds, which is a heartbeat too. Learns what a person wants of it.
-- It need not be on the disk when it is answered: where the trial's revision is not beyond the one that the
-- worker knows, a crash of the server has lost something, and the worker is asked to write it once more.
create function studyhall.write_one(p_trial_id integer, p_claim uuid, p_revision integer, p_step integer, p_changes jsonb)
returns studyhall.written language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    w studyhall.written;
begin
    w.trial_id := p_trial_id;
    perform from trials where trial_id = p_trial_id and state = 'RUNNING' for key share;
    if found then
        update studyhall.leases l
            set expires_at = now() + make_interval(secs => l.seconds), revision = l.revision + 1,
                changed = pg_current_xact_id(), step = coalesce(p_step, l.step)
            where l.trial_id = p_trial_id and l.claim = p_claim and l.held and l.revision >= p_revision
            returning l.study_id, l.worker_id, l.cancelled, exists (
                select from studyhall.budgets b where b.study_id = l.study_id and (b.paused or b.stopped is not null)
            ), l.revision into w.study_id, w.worker_id, w.cancelled, w.interrupted, w.revision;
    end if;
    if not found then
        w.failure := case when exists (
            select from studyhall.leases l join trials t using (trial_id)
            where l.trial_id = p_trial_id and l.claim = p_claim and l.held and t.state = 'RUNNING'
        ) then 'forgotten' else 'lost' end;
        return w;
    end if;
    w.epochs := studyhall.put(p_trial_id, p_changes);
    return w;
end $$;

-- The same for several trials; what any of them is refused for, all are. They are interrupted as well once the
-- budget of their study is used up.
create function studyhall.write(
    p_trial_ids integer[], p_claims uuid[], p_revisions integer[], p_steps integer[], p_changes jsonb[]
) returns table (trial_id integer, cancelled boolean, interrupted boolean, revision integer, failure text)
language plpgsql as $$
#variable_conflict use_column
declare
    each record;
    done studyhall.written[];
    over integer[] := '{}';
begin
    perform set_config('studyhall.own', 'yes', true);
    perform set_config('synchronous_commit', 'off', true);
    for each in
        select * from unnest(p_trial_ids, p_claims, p_revisions, p_steps, p_changes) as u (id, claim, known, step, changes)
        order by id
    loop
        done := done || studyhall.write_one(each.id, each.claim, each.known, each.step, each.changes);
    end loop;
    for each in
        select w.study_id, w.worker_id, sum(w.epochs)::integer as epochs
        from unnest(done) w where w.study_id is not null group by 1, 2 order by 1, 2
    loop
        if studyhall.spend(each.study_id, each.worker_id, each.epochs) then
            over := over || each.study_id;
        end if;
    end loop;
    return query select w.trial_id, w.cancelled, w.interrupted or w.study_id = any(over), w.revision, w.failure
        from unnest(done) w;
end $$;

-- A worker's result for a trial that it holds. Sent again, it changes nothing. A trial that was requeued
-- meanwhile, and that nobody has taken, takes the result too, if the budget has room for it: under the study's row
-- lock then.
create function studyhall.finish_one(
    p_trial_id integer, p_claim uuid, p_revision integer, p_state trialstate, p_values float8[], p_changes jsonb,
    p_is_study_locked boolean
) returns studyhall.written language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    w studyhall.written;
    study integer;
    worker text;
    was trialstate;
    is_held boolean;
    known integer;
begin
    w.trial_id := p_trial_id;
    select study_id, state into study, was from trials where trial_id = p_trial_id for no key update;
    if was = 'WAITING' and not p_is_study_locked then
        -- Requeued this very moment: the study's row has to be locked first.
        raise exception 'trial % was just requeued', p_trial_id using errcode = '40001';
    end if;
    select held, revision, worker_id into is_held, known, worker
        from studyhall.leases where trial_id = p_trial_id and claim = p_claim for update;
    if not found then
        w.failure := 'lost';
    elsif was = p_state and not is_held then
        null;
    elsif not (was = 'RUNNING' and is_held)
        and not (was = 'WAITING' and studyhall.has_room(studyhall.tally(study))) then
        w.failure := 'lost';
    elsif known < p_revision then
        w.failure := 'forgotten';
    else
        update studyhall.leases
            set held = false, expires_at = now(), revision = revision + 1, changed = pg_current_xact_id()
            where trial_id = p_trial_id;
        w.study_id := study;
        w.worker_id := worker;
        w.epochs := studyhall.put(p_trial_id, p_changes);
        perform studyhall.put_values(p_trial_id, p_values);
        update trials set state = p_state, datetime_complete = now() at time zone 'UTC' where trial_id = p_trial_id;
        delete from studyhall.checkpoints where trial_id = p_trial_id;
    end if;
    return w;
end $$;

-- The same for several trials of one study; what any of them is refused for, all are.
create function studyhall.finish(
    p_trial_ids integer[], p_claims uuid[], p_revisions integer[], p_states trialstate[],
    p_values text[],            -- each null, or a float8[]: they may be of different lengths
    p_changes jsonb[]
) returns table (trial_id integer, failure text)
language plpgsql as $$
#variable_conflict use_column
declare
    is_locked boolean := false;
    each record;
    done studyhall.written[];
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
        done := done || studyhall.finish_one(
            each.id, each.claim, each.known, each.state, each.values::float8[], each.changes, is_locked);
    end loop;
    for each in
        select w.study_id, w.worker_id, sum(w.epochs)::integer as epochs
        from unnest(done) w where w.study_id is not null group by 1, 2 order by 1, 2
    loop
        perform studyhall.spend(each.study_id, each.worker_id, each.epochs);
    end loop;
    return query select w.trial_id, w.failure from unnest(done) w;
end $$;

drop function studyhall.requeue(integer, text, real);

-- As before. A trial that has reached the step until which it was to train is paused, if its worker says that it was
-- left there (p_paused), or, where the worker died, if it has a checkpoint of that step.
create function studyhall.requeue(
    p_trial_id integer, p_died_of text, p_part real default 1, p_paused boolean default false
) returns boolean
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    lease studyhall.leases;
    farthest integer;
begin
    select * into lease from studyhall.leases where trial_id = p_trial_id and held for update;
    if not found then
        return false;
    end if;
    if p_died_of is not null or lease.until is not null then
        select max(i.step) into farthest from trial_intermediate_values i where i.trial_id = p_trial_id;
    end if;
    p_paused := p_paused or coalesce(farthest >= lease.until, false) and exists (
        select from studyhall.checkpoints c where c.trial_id = p_trial_id and c.step >= lease.until);
    if p_died_of is not null then
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
        if p_paused then
            update studyhall.leases set ready = false where trial_id = p_trial_id;
            insert into trial_system_attributes (trial_id, key, value_json)
                values (p_trial_id, 'studyhall:paused', farthest::text)
                on conflict (trial_id, key) do update set value_json = excluded.value_json;
        end if;
    end if;
    return true;
end $$;

drop function studyhall.give_back(integer, uuid, jsonb);

-- A worker gives back the trial that it holds, unfinished, or paused where its scheduler wanted that. Sent again, it
-- changes nothing.
create function studyhall.give_back(p_trial_id integer, p_claim uuid, p_changes jsonb, p_paused boolean) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    lease studyhall.leases;
    epochs integer;
begin
    perform set_config('studyhall.own', 'yes', true);
    perform from trials where trial_id = p_trial_id and state = 'RUNNING' for no key update;
    if found then
        select * into lease from studyhall.leases where trial_id = p_trial_id and claim = p_claim and held for update;
        if found then
            epochs := studyhall.put(p_trial_id, p_changes);
            perform studyhall.requeue(p_trial_id, null, 1, p_paused);
            perform studyhall.spend(lease.study_id, lease.worker_id, epochs);
        end if;
    end if;
end $$;

drop function studyhall.extend(uuid, integer, integer, integer, integer, integer, float8, float8);

-- As before, and epochs and GPU hours. Epochs are counted from here on where none were: what was reported before
-- counts, too. Paused trials have their room in the budget: they become PRUNED when the study ends.
create function studyhall.extend(
    p_token uuid, p_study_id integer, p_trials integer, p_more_trials integer, p_max_failures integer,
    p_more_failures integer, p_timeout float8, p_target float8, p_epochs bigint, p_more_epochs bigint,
    p_gpu_hours float8, p_more_gpu_hours float8,
    out finished integer        -- how many are done, where that is more than p_trials: nothing was changed then
) language plpgsql as $$
declare
    t studyhall.tallies;
    budget studyhall.budgets;
    paused integer;
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
    select * into budget from studyhall.budgets where study_id = p_study_id;
    budget.trials := coalesce(p_trials, budget.trials) + p_more_trials;
    paused := t.waiting - (select count(*) from studyhall.leases where study_id = p_study_id and ready);
    if budget.trials < t.complete + t.pruned + paused then
        finished := t.complete + t.pruned + paused;
        return;
    end if;
    if budget.epochs is null and coalesce(p_epochs, p_more_epochs, 0) > 0 then
        insert into studyhall.spent (study_id, epochs)
            select p_study_id, count(*) from trials join trial_intermediate_values using (trial_id) where study_id = p_study_id
            on conflict (study_id) do update set epochs = excluded.epochs;
    end if;
    update studyhall.budgets set trials = budget.trials, max_failures = coalesce(p_max_failures, max_failures) + p_more_failures,
        timeout_seconds = coalesce(p_timeout, timeout_seconds), target = coalesce(p_target, target),
        epochs = coalesce(p_epochs, epochs) + p_more_epochs, gpu_hours = coalesce(p_gpu_hours, gpu_hours) + p_more_gpu_hours,
        stopped = null
        where study_id = p_study_id;
    surplus := array(
        select l.trial_id from studyhall.leases l join trials on trials.trial_id = l.trial_id
        where l.study_id = p_study_id and l.held and trials.state = 'RUNNING'
        order by l.trial_id desc limit greatest(0, t.complete + t.pruned + t.running - budget.trials));
    for each in
        select trial_id from trials where trial_id = any(surplus) and state = 'RUNNING'
        order by trial_id for no key update
    loop
        perform studyhall.requeue(each, null);
    end loop;
end $$;
