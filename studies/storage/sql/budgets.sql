-- Budgets: how much a study may spend, and whether its trials run at all. Parameters are psycopg2's.

-- name: extend
-- Change what may change of a study's budget; how many trials are done, where that is too many for it.
select finished from studyhall.extend(
    %(token)s, %(study_id)s, %(trials)s, %(more_trials)s, %(max_failures)s, %(more_failures)s,
    %(timeout)s, %(target)s
)

-- name: pause
-- Run no trial for now.
update studyhall.budgets set paused = true where study_id = %(study_id)s

-- name: resume
-- Run trials again.
update studyhall.budgets set paused = false, stopped = null where study_id = %(study_id)s

-- name: stop_study
-- Begin no more trials; the first reason stays.
update studyhall.budgets set stopped = coalesce(stopped, %(reason)s) where study_id = %(study_id)s
