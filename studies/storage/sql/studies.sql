-- Studies: creating, finding, listing and deleting them. Parameters are psycopg2's.

-- name: create_study
-- Create a study with its directions, and with its spec, budget and address if it has a spec. Returns no row if the
-- name exists. Idempotent by its token: sent again, it returns the study that it created.
with request as (
    select answer from studyhall.requests where token = %(token)s
), study as (
    insert into studies (study_name) select %(name)s where not exists (select from request)
    on conflict (study_name) do nothing returning study_id
), direction as (
    insert into study_directions (study_id, objective, direction)
    select study_id, position - 1, upper(value)::studydirection
    from study, unnest(%(directions)s::text[]) with ordinality as d (value, position)
), user_attributes as (
    insert into study_user_attributes (study_id, key, value_json)
    select study_id, key, value
    from study, (values ('spec', %(spec)s::text), ('spec_sha256', to_json(%(sha256)s::text)::text)) as a (key, value)
    where %(spec)s is not null
), system_attributes as (
    insert into study_system_attributes (study_id, key, value_json)
    select study_id, 'study:metric_names', to_json(%(metric_names)s::text[])::text from study where %(spec)s is not null
), budget as (
    insert into studyhall.budgets (study_id, trials, max_failures, timeout_seconds, target, epochs, gpu_hours)
    select study_id, %(trials)s, %(max_failures)s, %(timeout_seconds)s, %(target)s, %(epochs)s, %(gpu_hours)s from study where %(spec)s is not null
), address as (
    insert into studyhall.addresses (study_id, url) select study_id, %(notify_url)s from study where %(notify_url)s::text is not null
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
-- The id of a study by its name.
select study_id from studies where study_name = %(name)s

-- name: find_study
-- A study by its name, with its spec as JSON (null where stock Optuna made it) and its live budget.
select s.study_id, s.study_name as name, a.value_json as spec, b.uid::text as uid, studyhall.address(s.study_id) as notify_url,
    case when b.study_id is not null then json_build_object(
        'trials', b.trials, 'max_failures', b.max_failures, 'timeout', b.timeout_seconds, 'target', b.target,
        'epochs', b.epochs, 'gpu_hours', b.gpu_hours
    ) end as budget
from studies s
left join studyhall.budgets b using (study_id)
left join study_user_attributes a on a.study_id = s.study_id and a.key = 'spec'
where s.study_name = %(name)s

-- name: all_studies
-- Every study with its directions and attributes (JSON texts; null without any).
select s.study_id, s.study_name as name,
    (select array_agg(direction::text order by objective) from study_directions d where d.study_id = s.study_id) as directions,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}'
        from study_user_attributes a where a.study_id = s.study_id) as user_attrs,
    (select '{' || string_agg(to_json(key)::text || ':' || value_json, ',') || '}'
        from study_system_attributes a where a.study_id = s.study_id) as system_attrs
from studies s order by s.study_id

-- name: study_names
-- All names.
select study_name as name from studies order by study_name

-- name: study_uids
-- The uid of every study, null for stock Optuna's. The mirror deletes the runs of all other uids.
select s.study_name as name, b.uid::text as uid from studies s left join studyhall.budgets b using (study_id)

-- name: identity
-- The identity of this database: the time when its tables were created, which backups preserve.
select md5(extract(epoch from min(at))::text) as identity from studyhall.version

-- name: list_studies
-- A row for each study: its trials by state, as the statement status counts them, budget, stop reason, best value (of a
-- single objective), and the workers seen lately. The largest budget is none.
select s.study_name as name, nullif(b.trials, 2147483647) as budget, t.complete, t.pruned, t.running, coalesce(r.ready, 0) as waiting,
    t.waiting - coalesce(r.ready, 0) as paused, t.failed + t.cancelled as fail,
    coalesce(b.paused, false) as is_paused, studyhall.ended(t) as ended,
    case when not exists (select from study_directions d where d.study_id = s.study_id and d.objective > 0) then t.best end as best,
    extract(epoch from now() - t.began at time zone 'UTC')::float8 as seconds_ago, coalesce(w.workers, 0) as workers
from studies s
cross join studyhall.tally(s.study_id) t
left join studyhall.budgets b on b.study_id = s.study_id
left join (select study_id, count(*) as ready from studyhall.leases where ready group by study_id) r on r.study_id = s.study_id
left join (
    select study_id, count(*) as workers from studyhall.workers, unnest(study_ids) as study_id
    where ended_at is null and seen_at > now() - interval '2 minutes' group by study_id
) w on w.study_id = s.study_id
order by t.began nulls last, s.study_id

-- name: status
-- The trials by state, of which those that a scheduler paused count apart, what was spent of a budget of epochs or GPU
-- hours, and the stop reason (null while trials may start).
select t.complete, t.pruned, t.running, r.ready as waiting, t.waiting - r.ready as paused, t.failed + t.cancelled as fail,
    coalesce(b.paused, false) as is_paused, studyhall.ended(t) as ended,
    coalesce(s.epochs, 0) as epochs, coalesce(s.gpu_seconds, 0) as gpu_seconds
from studyhall.tally(%(study_id)s) t
cross join lateral (select count(*) as ready from studyhall.leases l where l.study_id = t.study_id and l.ready) r
left join studyhall.budgets b on b.study_id = t.study_id
left join studyhall.spent s on s.study_id = t.study_id

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
-- A study's system attribute; set to %(value)s if it is missing. Of several processes the first one decides.
insert into study_system_attributes (study_id, key, value_json)
select study_id, %(key)s, %(value)s from studies where study_id = %(study_id)s
on conflict (study_id, key) do update set value_json = study_system_attributes.value_json
returning value_json

-- name: change_directions
-- Change a study's directions and its spec, or return what prevents it: finished or running trials, workers. Two
-- statements: the second one sees what was committed while the first one waited for the lock.
select from studies where study_id = %(study_id)s for no key update;
with now as (
    select t.complete + t.pruned as finished, t.running, (
        select count(*) from studyhall.workers
        where %(study_id)s = any(study_ids) and ended_at is null and seen_at > now() - interval '2 minutes'
    ) as workers
    from studyhall.tally(%(study_id)s) t
), changed as (
    update study_directions d set direction = upper(value)::studydirection
    from now, unnest(%(directions)s::text[]) with ordinality as g (value, position)
    where (finished, running, workers) = (0, 0, 0) and d.study_id = %(study_id)s and d.objective = position - 1
), said as (
    update study_user_attributes a set value_json = v.value
    from now, (values ('spec', %(spec)s), ('spec_sha256', to_json(%(sha256)s::text)::text)) as v (key, value)
    where (finished, running, workers) = (0, 0, 0) and a.study_id = %(study_id)s and a.key = v.key
)
select finished, running, workers from now

-- name: delete_study
-- Delete a study with all its rows; no row if there is no study.
select true as deleted where studyhall.delete_study(%(token)s, %(study_id)s)
