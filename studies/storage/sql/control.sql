-- What a person does to trials, beside the functions of the service. Parameters are psycopg2's.

-- name: sweep
-- Give back the trials of a study whose workers are gone, as any worker would; how many there were.
select studyhall.sweep(%(study_id)s) as swept
