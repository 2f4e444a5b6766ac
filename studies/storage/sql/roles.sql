-- The owner of the tables, and the rights of all users. Read from the catalogs, which need no rights.

-- name: own_rights
-- The current user and its rights. `owner` is that of the tables, null without tables.
with leases as (
    select c.oid, c.relowner from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'studyhall' and c.relname = 'leases'
), owner as (
    select coalesce(
        (select relowner from leases), (select relowner from pg_class where oid = to_regclass('alembic_version'))
    ) as oid
)
select current_user::text as name,
    (select pg_get_userbyid(datdba)::text from pg_database where datname = current_database()) as database_owner,
    has_database_privilege(current_database(), 'create')
        and coalesce(has_schema_privilege(current_schema(), 'create'), false) as may_create,
    (select pg_get_userbyid(oid)::text from owner where oid is not null) as owner,
    case when (select pg_has_role(oid, 'usage') from owner) then 'owner'
        when (select has_table_privilege(oid, 'update') from leases) then 'worker'
        when (select has_table_privilege(oid, 'select') from leases) then 'viewer' end as kind

-- name: grantee
-- Whether a user exists, and has the rights of the tables' owner, like a superuser.
select exists (select from pg_roles where rolname = %(role)s) as exists,
    exists (
        select from pg_class c join pg_namespace n on n.oid = c.relnamespace, pg_roles r
        where n.nspname = 'studyhall' and c.relname = 'leases' and r.rolname = %(role)s
            and pg_has_role(r.oid, c.relowner, 'usage')
    ) as is_owner

-- name: rights
-- The rights of the owner and of all grantees on each table and view of ours and of Optuna's. Optuna's schema is that
-- of the table to which our budgets refer.
with tables as (
    select c.oid, n.nspname, c.relname, c.relowner, c.relacl
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'v') and (n.nspname = 'studyhall' or n.oid in (
        select s.relnamespace
        from pg_constraint f
        join pg_class b on b.oid = f.conrelid
        join pg_namespace o on o.oid = b.relnamespace
        join pg_class s on s.oid = f.confrelid
        where f.contype = 'f' and o.nspname = 'studyhall' and b.relname = 'budgets'
    ))
), roles as (
    select relowner as oid from tables union select a.grantee from tables, aclexplode(relacl) a
)
select r.rolname::text as role, t.nspname::text as schema, t.relname::text as table, t.relowner = r.oid as is_owner,
    array(
        select verb from unnest(array['select', 'insert', 'update', 'delete']) verb
        where has_table_privilege(r.oid, t.oid, verb)
    ) as verbs
from tables t, pg_roles r
where r.oid in (select oid from roles)
order by r.rolname, t.oid
