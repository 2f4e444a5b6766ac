-- Studies of any size, read for people and scripts. Parameters are psycopg2's.

-- name: outlines
-- Outlines of all trials of a study: the number of reports and the last step, a failed trial's error, the constraints.
-- Attributes are JSON texts, null without any.
select t.trial_id, t.number, t.state::text as state, t.datetime_start, t.datetime_complete, v."values",
    coalesce(r.steps, 0) as steps, r.last_step, e.value_json as error, c.constraints
from trials t
left join (
    select trial_id, json_agg(case value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else value end
        order by objective)::text as "values"
    from trials join trial_values using (trial_id) where study_id = %(study_id)s group by trial_id
) v using (trial_id)
left join (
    select trial_id, count(*) as steps, max(step) as last_step
    from trials join trial_intermediate_values using (trial_id) where study_id = %(study_id)s group by trial_id
) r using (trial_id)
left join (
    select trial_id, '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}' as constraints
    from trials join trial_system_attributes using (trial_id)
    where study_id = %(study_id)s and key like 'constraints%%' group by trial_id
) c using (trial_id)
left join trial_user_attributes e on e.trial_id = t.trial_id and e.key = 'error' and t.state = 'FAIL'
where t.study_id = %(study_id)s
order by t.trial_id

-- name: param_names
-- The parameters of a study, in the order of their first use.
select param_name as name from trials join trial_params using (trial_id)
where study_id = %(study_id)s group by param_name order by min(array[trial_id, param_id])

-- name: distributions
-- The different distributions of each parameter of a study.
select distinct param_name as name, distribution_json as distribution from trials join trial_params using (trial_id)
where study_id = %(study_id)s

-- name: fixed_params
-- The parameters that a study's waiting trials were enqueued with, as JSON.
select trial_id, value_json as params from trials join trial_system_attributes using (trial_id)
where study_id = %(study_id)s and state = 'WAITING' and key = 'fixed_params' order by trial_id

-- name: user_attr_names
-- The user attributes of a study's trials, without ours, in the order of their first use.
select key as name from trials join trial_user_attributes using (trial_id)
where study_id = %(study_id)s and key <> all(%(own)s) group by key order by min(trial_user_attribute_id)

-- name: numbers
-- For completion: the numbers with a prefix, as texts, of a study's newest trials in these states (null: any).
select t.number::text as number from trials t join studies s using (study_id)
where s.study_name = %(study)s and (%(states)s::text[] is null or t.state::text = any(%(states)s))
    and starts_with(t.number::text, %(begun)s)
order by t.trial_id desc limit 100

-- name: page_rows
-- The columns of a table that the statement page lacks: the number of reported steps, the metrics of the last step by
-- name, the last worker, and the number of attempts.
with runs as materialized (
    select * from unnest(%(firsts)s::integer[], %(lasts)s::integer[]) as run (first, last)
), reported as (
    select trial_id, count(*) as steps
    from runs, lateral (select trial_id from trial_intermediate_values where trial_id between first and last offset 0) i
    group by trial_id
), metric as (
    select name, string_agg(int4send(trial_id) || int4send(step) || float8send(value), '') as numbers
    from (
        select *, max(step) over (partition by trial_id) as last_step
        from runs, lateral (select * from studyhall.metrics where trial_id between first and last offset 0) m
    ) m
    where step = last_step group by name
)
select r.*, m.*, l.*
from (
    select string_agg(int4send(trial_id) || int4send(0) || float8send(steps), '') as steps from reported
) r, (
    select array_agg(name order by name) as metric_names, array_agg(numbers order by name) as metrics from metric
) m, (
    select string_agg(int4send(trial_id), '') as begun, array_agg(worker_id) as workers, array_agg(epoch - promotions) as epochs
    from runs, lateral (select * from studyhall.leases where trial_id between first and last offset 0) l
    where epoch > 0
) l
