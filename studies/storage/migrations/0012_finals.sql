-- Who trains a study's final model. One process does, on whatever machine: two would look at the test data twice.

create table studyhall.finals (
    study_id integer primary key references studies on delete cascade,
    token    uuid not null,                                 -- of the process
    holder   text not null,                                 -- HOST (pid N), as the process says
    till     timestamptz not null                           -- from then on another process may take the lease
);

-- Whoever may write leases may write these.
do $$
declare
    grantee record;
begin
    for grantee in
        select a.grantee::regrole as role, a.privilege_type as privilege
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'studyhall.leases'::regclass and a.grantee not in (0, c.relowner)
    loop
        execute format('grant %s on studyhall.finals to %s', grantee.privilege, grantee.role);
    end loop;
end $$;
