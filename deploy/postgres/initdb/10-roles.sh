#!/bin/sh
# Makes the users and the databases, once, when the server is new; on a server of your own: with psql's usual
# environment (PGHOST, PGUSER, …) of its administrator. Passwords come from /run/secrets, or SECRETS.
set -eu
secrets=${SECRETS:-/run/secrets}
psql -v ON_ERROR_STOP=1 -q --no-psqlrc -U "${POSTGRES_USER:-${PGUSER:-postgres}}" -d postgres \
    -v owner="$(cat "$secrets/owner")" -v worker="$(cat "$secrets/worker")" \
    -v viewer="$(cat "$secrets/viewer")" -v mlflow="$(cat "$secrets/mlflow")" <<'SQL'
-- Each may be there already: then its password is set anew.
select format('create role %I login', role)
from unnest(array['studyhall_owner', 'studyhall_worker', 'studyhall_viewer', 'studyhall_mlflow']) role
where not exists (select from pg_roles where rolname = role) \gexec
alter role studyhall_owner password :'owner';
alter role studyhall_worker password :'worker';
alter role studyhall_viewer password :'viewer';
alter role studyhall_mlflow password :'mlflow';
-- In UTF-8, whatever the server's own locale is.
select 'create database studies owner studyhall_owner encoding ''UTF8'' template template0'
where not exists (select from pg_database where datname = 'studies') \gexec
select 'create database studies_mlflow owner studyhall_mlflow encoding ''UTF8'' template template0'
where not exists (select from pg_database where datname = 'studies_mlflow') \gexec
revoke all on database studies, studies_mlflow from public;
grant connect on database studies to studyhall_worker, studyhall_viewer, studyhall_mlflow;
\connect studies
alter schema public owner to studyhall_owner;
SQL
