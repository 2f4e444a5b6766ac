-- Evidence from other studies, and changes of a space. Parameters are psycopg2's.

-- name: add_evidence
-- Store trials of another study as evidence. Those that are there stay.
insert into studyhall.evidence (study_id, source, number, contents)
select %(study_id)s, %(source)s, number, contents
from unnest(%(numbers)s::integer[], %(contents)s::text[]) as t (number, contents)
on conflict do nothing

-- name: evidence
-- All evidence of a study.
select source, number, contents from studyhall.evidence where study_id = %(study_id)s order by source, number

-- name: evidence_counts
-- The number of trials of each other study.
select source, count(*) as trials from studyhall.evidence where study_id = %(study_id)s group by source order by source
