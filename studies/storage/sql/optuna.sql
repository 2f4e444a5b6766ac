-- Optuna's contract: what BaseStorage asks for, one statement for each call. Parameters are psycopg2's.

-- name: new_study
-- A study without a spec; no row where the name is taken. Sent again, it finds what it made by its token.
with request as (
    select answer from studyhall.requests where token = %(token)s
), study as (
    insert into studies (study_name) select %(name)s where not exists (select from request)
    on conflict (study_name) do nothing returning study_id
), direction as (
    insert into study_directions (study_id, objective, direction)
    select study_id, position - 1, value::studydirection
    from study, unnest(%(directions)s::text[]) with ordinality as d (value, position)
), remembered as (
    insert into studyhall.requests (token, answer) select %(token)s, study_id from study
)
select study_id from study union all select answer from request

-- name: study_by_id
-- A study's name and directions.
select s.study_name as name,
    (select array_agg(direction::text order by objective) from study_directions d where d.study_id = s.study_id) as directions
from studies s where s.study_id = %(study_id)s

-- name: study_id
-- The number of the study of that name.
select study_id from studies where study_name = %(name)s

-- name: all_studies
-- Every study with its directions and attributes; these as JSON texts, null where there is none.
select s.study_id, s.study_name as name,
    (select array_agg(direction::text order by objective) from study_directions d where d.study_id = s.study_id) as directions,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}'
        from study_user_attributes a where a.study_id = s.study_id) as user_attrs,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}'
        from study_system_attributes a where a.study_id = s.study_id) as system_attrs
from studies s order by s.study_id

-- name: study_user_attrs
-- A study's user attributes as a JSON text; no row where there is no study.
select (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}'
    from study_user_attributes a where a.study_id = s.study_id) as attrs
from studies s where s.study_id = %(study_id)s

-- name: study_system_attrs
-- A study's system attributes, likewise.
select (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}'
    from study_system_attributes a where a.study_id = s.study_id) as attrs
from studies s where s.study_id = %(study_id)s

-- name: set_study_user_attr
-- No row where there is no study.
insert into study_user_attributes (study_id, key, value_json)
select study_id, %(key)s, %(value)s from studies where study_id = %(study_id)s
on conflict (study_id, key) do update set value_json = excluded.value_json
returning study_id

-- name: set_study_system_attr
-- No row where there is no study.
insert into study_system_attributes (study_id, key, value_json)
select study_id, %(key)s, %(value)s from studies where study_id = %(study_id)s
on conflict (study_id, key) do update set value_json = excluded.value_json
returning study_id

-- name: agree
-- A study's system attribute, which becomes %(value)s where there is none: who asks first decides.
insert into study_system_attributes (study_id, key, value_json)
select study_id, %(key)s, %(value)s from studies where study_id = %(study_id)s
on conflict (study_id, key) do update set value_json = study_system_attributes.value_json
returning value_json

-- name: create_trial
-- A new trial, alone or from a template, as it came to be.
select * from studyhall.create_trial(
    %(token)s, %(study_id)s, %(state)s, %(datetime_start)s, %(datetime_complete)s, %(values)s::float8[], %(changes)s
)

-- name: set_param
-- One parameter of a trial; returns the study's other distribution of it, if there is one, and does nothing then.
select studyhall.set_param(%(trial_id)s, %(name)s, %(value)s, %(distribution)s) as previous

-- name: set_trial
-- Reports, attributes and parameters of a trial that nobody holds.
select studyhall.set(%(trial_id)s, %(changes)s)

-- name: set_state
-- A trial's state and values; false where it should run and cannot be had.
select studyhall.set_state(%(token)s, %(trial_id)s, %(state)s, %(values)s::float8[]) as done

-- name: trial
-- One trial with all that it holds.
select * from studyhall.contents where trial_id = %(trial_id)s

-- name: trial_id_of
-- The id of a study's trial by its number.
select trial_id from trials where study_id = %(study_id)s and number = %(number)s

-- name: all_trials
-- The next trials of a study after one of them, by id; each with the snapshot by which to ask for changes.
select pg_current_snapshot()::text as snapshot, c.* from studyhall.contents c
where c.study_id = %(study_id)s and c.trial_id > %(after)s order by c.trial_id limit %(count)s

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

-- name: delete_study
-- A study and all that hangs on it; no row where there is no study.
select true as deleted where studyhall.delete_study(%(token)s, %(study_id)s)
