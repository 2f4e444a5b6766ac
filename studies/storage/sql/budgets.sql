-- Budgets: how many trials a study may finish, and whether it is paused or stopped. Parameters are psycopg2's.

-- name: extend
-- Change a study's budget. If more trials have finished than it allows: change nothing, and return how many.
select finished from studyhall.extend(
    %(token)s, %(study_id)s, %(trials)s, %(more_trials)s, %(max_failures)s, %(more_failures)s,
    %(timeout)s, %(target)s, %(epochs)s, %(more_epochs)s, %(gpu_hours)s, %(more_gpu_hours)s
)

-- name: spent
-- What a study has spent, to compare a new budget with. Where the budget has no epochs, every report is one.
select case when b.epochs is not null then coalesce(s.epochs, 0) else
        (select count(*) from trials join trial_intermediate_values using (trial_id) where study_id = b.study_id) end as epochs,
    coalesce(s.gpu_seconds, 0) / 3600 as gpu_hours
from studyhall.budgets b left join studyhall.spent s using (study_id) where b.study_id = %(study_id)s

-- name: epochs_left
-- How many epochs a study may still train, negative where its last reports came together; and the trials that a worker
-- trains, or that wait for any. No row without such a limit.
select b.epochs - coalesce(s.epochs, 0) as epochs, array(
    select t.number from studyhall.leases l join trials t using (trial_id)
    where l.study_id = b.study_id and (l.held or l.ready)) as numbers
from studyhall.budgets b left join studyhall.spent s using (study_id)
where b.study_id = %(study_id)s and b.epochs is not null

-- name: pause
-- Pause a study: claims are refused, and running trials are interrupted by the answer to their next write.
update studyhall.budgets set paused = true where study_id = %(study_id)s

-- name: resume
-- Undo a pause or a stop.
update studyhall.budgets set paused = false, stopped = null where study_id = %(study_id)s

-- name: stop_study
-- Stop a study. The first reason stays.
update studyhall.budgets set stopped = coalesce(stopped, %(reason)s) where study_id = %(study_id)s
