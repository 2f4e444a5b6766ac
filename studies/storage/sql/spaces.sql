-- Changes of a study's space. Parameters are psycopg2's.

-- name: change_space
-- Change the spec of a study whose spec is %(before)s, and note the change; no row where it is another one by now. Two
-- statements: the second one sees what was committed while the first one waited for the lock.
select from studies where study_id = %(study_id)s for no key update;
with changed as (
    update study_user_attributes a set value_json = v.value
    from (values ('spec', %(spec)s), ('spec_sha256', to_json(%(sha256)s::text)::text)) as v (key, value)
    where a.study_id = %(study_id)s and a.key = v.key and exists (
        select from study_user_attributes s
        where s.study_id = %(study_id)s and s.key = 'spec' and s.value_json = %(before)s
    )
    returning a.key
)
insert into studyhall.space_changes (study_id, version, who, change)
select %(study_id)s, studyhall.space_version(%(study_id)s) + 1, %(who)s, %(change)s where exists (select from changed)
returning version

-- name: space_changes
-- The changes of a study's space, the oldest first.
select version, at, who, change from studyhall.space_changes where study_id = %(study_id)s order by version

-- name: spec_text
-- A study's spec as it is stored; no row where stock Optuna made it.
select value_json as text from study_user_attributes where study_id = %(study_id)s and key = 'spec'
