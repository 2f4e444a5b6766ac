-- Reading a study of any size for people and scripts, a part at a time. Parameters are psycopg2's.

-- name: outlines
-- Every trial of a study in short: of its reports how many and the last step, of its attributes a failed trial's
-- error and the constraints. Attributes are JSON texts, null where there is none.
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

-- name: some_trials
-- These trials with all that they hold.
select * from studyhall.contents where trial_id = any(%(trial_ids)s::integer[]) order by trial_id

-- name: thinned_curves
-- The metrics of these trials, at most so many points of each line; the last one is always among them.
select trial_id, step, name, value, at
from (
    select m.*, row_number() over line as place, count(*) over (partition by m.trial_id, m.name) as points
    from unnest(%(trial_ids)s::integer[]) as t (trial_id) join studyhall.metrics m using (trial_id)
    window line as (partition by m.trial_id, m.name order by m.step)
) m
where points <= %(most)s or (place * %(most)s + points - 1) / points * points / %(most)s = place
order by trial_id, step, name

-- name: param_names
-- The parameters of a study in the order in which its trials first had them.
select param_name as name from trials join trial_params using (trial_id)
where study_id = %(study_id)s group by param_name order by min(array[trial_id, param_id])

-- name: last_metric_names
-- The metrics that some trial of a study reported at its last step.
select distinct m.name from trials t cross join lateral (
    select name from studyhall.metrics where trial_id = t.trial_id order by step desc fetch first row with ties
) m where t.study_id = %(study_id)s order by m.name

-- name: trial_rows
-- The next trials of a study after one of them, by id, as a table lists them. Lists and objects are JSON texts, null
-- where there is nothing; ``names`` is each parameter's name and distribution, ``params`` its value; metrics are those of
-- the last step; reports come only where they are wanted.
select t.trial_id, t.number, t.state::text as state, t.datetime_start, t.datetime_complete,
    (select json_agg(case value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity' else value end
        order by objective)::text from trial_values v where v.trial_id = t.trial_id) as "values",
    p.names, p.params,
    (select json_object_agg(name, value order by name)::text from (
        select name, value from studyhall.metrics m where m.trial_id = t.trial_id
        order by step desc fetch first row with ties
    ) last) as metrics,
    (select count(*) from trial_intermediate_values i where i.trial_id = t.trial_id) as steps,
    case when %(reports)s then (select '[' || string_agg(
            step || ',' || case intermediate_value_type when 'INF_POS' then 'Infinity' when 'INF_NEG' then '-Infinity'
                when 'NAN' then 'NaN' else intermediate_value::text end, ',' order by step) || ']'
        from trial_intermediate_values i where i.trial_id = t.trial_id) end as reports,
    (select value_json from trial_user_attributes a where a.trial_id = t.trial_id and key = 'error') as error,
    l.worker_id as worker, l.epoch as attempts
from trials t left join studyhall.leases l on l.trial_id = t.trial_id and l.epoch > 0
left join lateral (
    select '[' || string_agg(to_json(param_name)::text || ',' || distribution_json, ',' order by param_id) || ']' as names,
        '[' || string_agg(param_value::text, ',' order by param_id) || ']' as params
    from trial_params where trial_id = t.trial_id
) p on true
where t.study_id = %(study_id)s and t.trial_id > %(after)s
order by t.trial_id limit %(count)s
