-- A claim may be given an upper limit to the number of a study's trials, as a grid has one: each of its combinations is
-- begun once, also where trials fail.

drop function studyhall.claim(integer, text, double precision, uuid, pg_snapshot, integer[]);
drop function studyhall.take(integer, text, double precision, uuid);

-- Give a worker its next trial: one that waits, else a new one, if the budget has room for it. Under the
-- study's row lock, which stock Optuna takes too when it creates a trial. The same claim sent again gets the
-- same trial. It need not be on the disk when it is answered: where a crash of the server loses it, whoever
-- comes next gets the trial, under another claim, and what the first one writes is refused.
create function studyhall.take(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid,
    p_most integer,         -- a new trial only where there are fewer than so many, if not null
    out trial_id integer,   -- null where there is none
    out epoch integer,
    out reason text         -- then: 'wait' for the running ones, 'paused', 'exhausted', or why the study is over
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

-- Take a trial, and read what has changed in the study: one row with the reason where there is none to take, else
-- the changed trials, of which the taken one has an epoch.
create function studyhall.claim(
    p_study_id integer, p_worker_id text, p_lease_seconds double precision, p_claim uuid, p_most integer,
    p_since pg_snapshot, p_again integer[]
) returns table (reason text, epoch integer, snapshot text, trial studyhall.contents)
language plpgsql as $$
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
