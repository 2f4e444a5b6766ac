-- Which notifications were sent to which address. An address is stored as a hash: it may hold a secret.

-- name: notices
-- The notifications that were sent to an address, or are about to be. A free one is unsent, and its sender gave up.
select event, told_at is not null as told, told_at is null and taken_till < now() as free, taken_by as taker,
    extract(epoch from now() - told_at)::float8 as told_seconds_ago
from studyhall.notices where study_id = %(study_id)s and address = %(address)s

-- name: take_notices
-- Lease notifications for a minute, in which no other process sends them; returns those that the caller may send. The
-- minute is not renewed: another machine may reach an address that the caller cannot.
insert into studyhall.notices as n (study_id, address, event, taken_by, taken_till)
select study_id, %(address)s, event, %(taker)s, now() + interval '1 minute'
from studies, unnest(%(events)s::text[]) as event where study_id = %(study_id)s order by event
on conflict (study_id, address, event) do update set
    taken_by = excluded.taken_by,
    taken_till = case when n.taken_till > now() then n.taken_till else excluded.taken_till end
where n.told_at is null and (n.taken_till < now() or n.taken_by = excluded.taken_by)
returning event

-- name: mark_sent
-- Notifications were sent, or are obsolete.
update studyhall.notices set told_at = coalesce(told_at, now())
where (study_id, address, event) in (
    select study_id, address, event from studyhall.notices
    where study_id = %(study_id)s and address = %(address)s and event = any(%(events)s::text[])
    order by event for update)
