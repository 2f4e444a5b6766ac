-- Who trains a study's final model: one process at a time. Parameters are psycopg2's.

-- name: lease_final
-- Take the lease on a study's final model, or renew it; no row where another process has it.
insert into studyhall.finals as f (study_id, token, holder, till)
select study_id, %(token)s, %(holder)s, now() + make_interval(secs => %(seconds)s) from studies where study_id = %(study_id)s
on conflict (study_id) do update set token = excluded.token, holder = excluded.holder, till = excluded.till
where f.token = excluded.token or f.till <= now()
returning study_id

-- name: final_holder
-- Who has the lease on a study's final model, or had it last.
select holder from studyhall.finals where study_id = %(study_id)s

-- name: release_final
-- Give the lease on a study's final model back.
update studyhall.finals set till = now() where study_id = %(study_id)s and token = %(token)s
