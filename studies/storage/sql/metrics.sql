-- Metrics, beside what Optuna knows of a trial. Parameters are psycopg2's.

-- name: last_metrics
-- The metrics of the last reported step of each of these trials.
select m.trial_id, m.name, m.value
from studyhall.metrics m
where m.trial_id = any(%(trial_ids)s)
    and m.step = (select max(step) from studyhall.metrics where trial_id = m.trial_id)
order by m.trial_id, m.name

-- name: metrics
-- Every metric of every step of a trial.
select step, name, value from studyhall.metrics where trial_id = %(trial_id)s order by step, name

-- name: curves
-- The metrics of these trials, of the steps after the given ones.
select m.trial_id, m.step, m.name, m.value, m.at
from unnest(%(trial_ids)s::integer[], %(after)s::integer[]) as t (trial_id, after)
join studyhall.metrics m on m.trial_id = t.trial_id and m.step > t.after
order by m.trial_id, m.step, m.name

-- name: thinned_curves
-- The metrics of these trials, thinned to a maximum of points per line, which includes the last one.
select trial_id, step, name, value, at
from (
    select m.*, row_number() over line as place, count(*) over (partition by m.trial_id, m.name) as points
    from unnest(%(trial_ids)s::integer[]) as t (trial_id) join studyhall.metrics m using (trial_id)
    window line as (partition by m.trial_id, m.name order by m.step)
) m
where points <= %(most)s or (place * %(most)s + points - 1) / points * points / %(most)s = place
order by trial_id, step, name

-- name: last_metric_names
-- The names of the metrics at the last steps of a study's trials.
select distinct m.name from trials t cross join lateral (
    select name from studyhall.metrics where trial_id = t.trial_id order by step desc fetch first row with ties
) m where t.study_id = %(study_id)s order by m.name
