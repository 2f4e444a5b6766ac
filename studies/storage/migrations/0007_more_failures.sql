-- So many more failures are added here, as so many more trials are: two who extend a study at once both count.

drop function studyhall.extend(uuid, integer, integer, integer, integer, float8, float8);

-- Change what may change of a study's budget, once for each token, whatever stopped the study. Where more trials
-- are running than the new budget has room for, the newest are requeued at once: none of them ends any more.
create function studyhall.extend(
    p_token uuid, p_study_id integer, p_trials integer, p_more_trials integer, p_max_failures integer,
    p_more_failures integer, p_timeout float8, p_target float8,
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
    update studyhall.budgets set trials = budget, max_failures = coalesce(p_max_failures, max_failures) + p_more_failures,
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
