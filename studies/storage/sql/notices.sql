-- Who was told what happened to a study. An address is known here by its hash alone.

-- name: notices
-- What was told, or is about to be told, to an address. Nobody is at a notice that is free, and it was not told.
select event, told_at is not null as told, told_at is null and taken_till < now() as free, taken_by as taker,
    extract(epoch from now() - told_at)::float8 as told_seconds_ago
from studyhall.notices where study_id = %(study_id)s and address = %(address)s

-- name: take_notices
-- Take notices for a minute, in which nobody else tells them; returns those that are the caller's now. The minute
-- is not begun anew, so that others get a chance where the caller cannot reach the address.
insert into studyhall.notices as n (study_id, address, event, taken_by, taken_till)
select study_id, %(address)s, event, %(taker)s, now() + interval '1 minute'
from studies, unnest(%(events)s::text[]) as event where study_id = %(study_id)s order by event
on conflict (study_id, address, event) do update set
    taken_by = excluded.taken_by,
    taken_till = case when n.taken_till > now() then n.taken_till else excluded.taken_till end
where n.told_at is null and (n.taken_till < now() or n.taken_by = excluded.taken_by)
returning event

-- name: note_told
-- Notices were told, or need not be any more.
update studyhall.notices set told_at = coalesce(told_at, now())
where (study_id, address, event) in (
    select study_id, address, event from studyhall.notices
    where study_id = %(study_id)s and address = %(address)s and event = any(%(events)s::text[])
    order by event for update)
