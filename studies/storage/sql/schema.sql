-- The tables. Parameters are psycopg2's.

-- name: schema_state
-- What this database holds of Optuna's schema and of ours.
select to_regclass('alembic_version') is not null as optuna, to_regclass('studyhall.version') is not null as studyhall

-- name: schema_version
-- Our newest migration here, and the Optuna that made Optuna's tables.
select (select max(version) from studyhall.version) as version, (select library_version from version_info) as optuna
