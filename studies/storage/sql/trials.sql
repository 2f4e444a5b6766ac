-- Trials: creating, changing and reading them. Parameters are psycopg2's.

-- name: create_trial
-- Create a trial, empty or from a template; returns it.
select * from studyhall.create_trial(
    %(token)s, %(study_id)s, %(state)s, %(datetime_start)s, %(datetime_complete)s, %(values)s::float8[], %(changes)s
)

-- name: set_param
-- Set a parameter of a trial. If the study has another distribution of it: do nothing, and return that one.
select studyhall.set_param(%(trial_id)s, %(name)s, %(value)s, %(distribution)s) as previous

-- name: set_trial
-- Reports, attributes and parameters of a trial without a lease.
select studyhall.set(%(trial_id)s, %(changes)s)

-- name: set_state
-- A trial's state and values; false if it should run and another worker has it, or the budget has no room.
select studyhall.set_state(%(token)s, %(trial_id)s, %(state)s, %(values)s::float8[]) as done

-- name: cancel
-- Cancel a trial: at once without a lease, else by the answer to its worker's next write.
select studyhall.cancel(%(trial_id)s)

-- name: trial
-- One whole trial.
select * from studyhall.contents where trial_id = %(trial_id)s

-- name: trial_id_of
-- The id of a study's trial by its number.
select trial_id from trials where study_id = %(study_id)s and number = %(number)s

-- name: trial_ids
-- The ids of a study's trials, ascending (null without any), and the snapshot for asking for later changes.
select pg_current_snapshot()::text as snapshot, array_agg(trial_id order by trial_id) as ids
from trials where study_id = %(study_id)s

-- name: page
-- Many trials in one row, by ranges of consecutive ids: looking up each id takes 1.5 times as long.
-- Numbers are binary, as PostgreSQL sends them. An entry is a trial's id, a place (the step, the
-- objective, the order of parameters) and a value; parameters are grouped by name and distribution. Attributes are a
-- trial's id, a colon and JSON. Reports are optional.
with runs as materialized (
    select * from unnest(%(firsts)s::integer[], %(lasts)s::integer[]) as run (first, last)
), page as materialized (
    select t.* from runs, lateral (select * from trials where trial_id between first and last offset 0) t
    order by t.trial_id
), param as (
    select param_name, distribution_json,
        string_agg(int4send(trial_id) || int4send(param_id) || float8send(param_value), '') as numbers
    from runs, lateral (select * from trial_params where trial_id between first and last offset 0) p
    group by param_name, distribution_json
), user_attr as (
    select trial_id, string_agg(to_json(key)::text || ':' || value_json, ',' order by trial_user_attribute_id) as attrs
    from runs, lateral (select * from trial_user_attributes where trial_id between first and last offset 0) a
    group by trial_id
), system_attr as (
    select trial_id, string_agg(to_json(key)::text || ':' || value_json, ',' order by trial_system_attribute_id) as attrs
    from runs, lateral (select * from trial_system_attributes where trial_id between first and last offset 0) a
    group by trial_id
)
select t.*, v.*, r.*, p.*,
    (select array_agg(trial_id || ':{' || attrs || '}') from user_attr) as user_attrs,
    (select array_agg(trial_id || ':{' || attrs || '}') from system_attr) as system_attrs
from (
    select string_agg(int4send(trial_id), '') as trial_ids, string_agg(int4send(number), '') as numbers,
        string_agg(left(state::text, 1), '') as states,
        string_agg(timestamp_send(coalesce(datetime_start, 'infinity')), '') as starts,
        string_agg(timestamp_send(coalesce(datetime_complete, 'infinity')), '') as completes
    from page
) t, (
    select string_agg(int4send(trial_id) || int4send(objective) || float8send(case value_type
        when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else value end), '') as "values"
    from runs, lateral (select * from trial_values where trial_id between first and last offset 0) v
) v, (
    select string_agg(int4send(trial_id) || int4send(step) || float8send(case intermediate_value_type
        when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' when 'NAN' then 'NaN' else intermediate_value
        end), '') as reports
    from runs, lateral (select * from trial_intermediate_values where trial_id between first and last offset 0) i
    where %(with_reports)s
) r, (
    select array_agg(param_name) as names, array_agg(distribution_json) as distributions, array_agg(numbers) as params
    from param
) p

-- name: changed_trials
-- The trials of a study that are new or changed since a snapshot, and those of the given ids.
select snapshot, (trial).* from studyhall.changes(%(study_id)s, %(since)s::pg_snapshot, %(again)s::integer[])

-- name: best
-- The best COMPLETE trial of a study's first objective; of equal ones the lowest number.
select t.trial_id
from trials t
join trial_values v using (trial_id)
join study_directions d using (study_id, objective)
where t.study_id = %(study_id)s and t.state = 'COMPLETE' and v.objective = 0
order by
    case d.direction when 'MINIMIZE' then 1 else -1 end
        * case v.value_type when 'INF_POS' then 'infinity' when 'INF_NEG' then '-infinity' else v.value end,
    t.number
limit 1
